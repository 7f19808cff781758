// Rules and reductions by the names that Python gives them.
#pragma once

#include <string>

#include "core/check.h"
#include "ops/score.h"

namespace kizu {

inline ScoreRule rule_called(const std::string& name) {
  if (name == "residual") return ScoreRule::residual;
  if (name == "residual_feature") return ScoreRule::residual_feature;
  if (name == "residual_logit") return ScoreRule::residual_logit;
  check(name == "logit", "no rule is called '", name, "'");
  return ScoreRule::logit;
}

inline Reduce reduction_called(const std::string& name) {
  check(name == "max" || name == "mean", "reduce is '", name, "', but must be 'max' or 'mean'");
  return name == "max" ? Reduce::max : Reduce::mean;
}

}  // namespace kizu
