// score: a graph's outputs -> one score an image, and on request the residual map from the same pass.
//
//   residual:          mean|x - x_hat|                                         (bi-directional GAN 2020, eq. 7)
//   residual_feature:  (1 - weight) mean|x - x_hat| + weight mean|f - f_hat|   (2020, eq. 7 and 8)
//   residual_logit:    (1 - weight) mean|x - x_hat| + weight softplus(-logit)  (2020, eq. 7 and 9)
//   logit:             -logit                                                  (ALGAN 2022, eq. 8)
//
// The sums have one canonical order, so that instruction set, device, threads, batch size and position change no bit.
// Each plane (one channel of x; f is a single plane) is cut into blocks of kScoreBlock elements, the last may be
// shorter. In a block, lane l of kScoreLanes adds |a - b| of the elements l, l + kScoreLanes, ... in float32, beginning
// with 0; the lanes are added in halves (l and l + 128, then l and l + 64, ... at last l and l + 1), lanes without
// elements being 0. The block sums, channel by channel, are added in ascending order in float64, beginning with 0, and
// divided by the number of elements; the rule is computed in float64 without contraction and rounded to float32 once.
// float16 inputs are widened to float32 first. Views: the float32 scores of the views of a frame are reduced by their
// maximum (NaN if one is NaN) or by their mean (float64, ascending). The payload of a NaN is not defined.
//
// map: mean over the channels of |x - x_hat| at each pixel: float32, channels ascending, divided by their number.
#pragma once

#include <cstddef>
#include <vector>

#include "core/cuda.h"
#include "core/parallel.h"

namespace kizu {

constexpr int kScoreLanes = 256;
constexpr int kScoreBlock = 2048;

enum class ScoreRule { residual, residual_feature, residual_logit, logit };

constexpr bool reads_logit(ScoreRule rule) { return rule == ScoreRule::residual_logit || rule == ScoreRule::logit; }

enum class Reduce { max, mean };

struct ScoreSpec {
  ScoreRule rule;
  double weight = 0;  // lambda of the papers, in [0, 1]; read where the rule has two terms
  bool half = false;  // the tensors are float16
  int views = 1;      // consecutive images that are views of one frame
  Reduce reduce = Reduce::max;
};

// A graph's outputs, contiguous. What the rule does not read may be null.
struct ScoreTensors {
  int images = 0;               // a multiple of the spec's views
  int channels = 0;             // of x
  std::ptrdiff_t pixels = 0;    // of x
  std::ptrdiff_t features = 0;  // of f
  const void* x = nullptr;      // (images, channels, pixels)
  const void* x_hat = nullptr;
  const void* f = nullptr;  // (images, features)
  const void* f_hat = nullptr;
  const void* logit = nullptr;  // (images)
};

// Throws std::invalid_argument for what cpu::score and cuda::score refuse: a spec, tensors or outputs that do not fit.
void check_score(const ScoreSpec& spec, const ScoreTensors& tensors, const float* scores, const float* map);

namespace cpu {

struct ScoreScratch {
  std::vector<float> block_sums;
  std::vector<float> view_scores;
};

// scores: (images / views); map: (images, pixels) or null. Throws std::invalid_argument for what does not fit.
void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map, ScoreScratch& scratch,
           ThreadPool& pool);

}  // namespace cpu

namespace cuda {

struct ScoreScratch {
  DeviceBuffer block_sums, tickets;
};

// As cpu::score, with everything in device memory; one launch on the stream.
void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map, ScoreScratch& scratch,
           const Stream& stream);

}  // namespace cuda
}  // namespace kizu
