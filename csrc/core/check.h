// Errors at the boundary: what was given and what is accepted.
#pragma once

#include <sstream>
#include <stdexcept>

namespace kizu {

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace kizu
