// Reads an operation's arguments from a case and calls it.
#pragma once

#include <vector>

#include "case_file.h"
#include "lane.h"

namespace kizu::tests {

// A call that may still run on its lane: what it writes, what that must be, and what it reads.
struct Call {
  struct Output {
    const Array* expected;
    Memory memory;
  };
  const Case* of = nullptr;
  std::vector<Output> outputs;
  std::vector<Memory> inputs;
};

// By the case's operation: prepare, resize, score or smooth_map. The case must outlive the call.
Call start(const Case& from, Lane& lane);

}  // namespace kizu::tests
