// One caller of the operations: a thread pool or a CUDA stream, with the plans and the work space, one an operation,
// that it keeps between calls.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ops/prepare.h"
#include "ops/score.h"
#include "ops/smooth_map.h"

namespace kizu::tests {

// Memory where the operations run, of exactly the size that was asked for; sanitizers see what reads beyond.
struct Memory {
  std::shared_ptr<std::byte> owner;  // what follows lies in it
  std::byte* data = nullptr;
  std::size_t size = 0;
};

class Lane {
 public:
  // Memory begins this many elements after an aligned address.
  explicit Lane(std::size_t shift) : shift_(shift) {}
  virtual ~Lane() = default;

  Memory input(std::span<const std::byte> bytes, std::size_t item_size);
  // Filled with kPoison and between guards.
  Memory output(std::size_t size, std::size_t item_size);
  // Waits for the calls before. Throws std::runtime_error if a guard of the output has changed.
  std::vector<std::byte> result(const Memory& output);

  // The plan that this lane made for the key, kept as long as the lane lives.
  PreparePlan& plan(const std::string& key, const std::function<PreparePlan()>& make);
  SmoothMapPlan& plan(const std::string& key, const std::function<SmoothMapPlan()>& make);

  virtual void prepare(const PreparePlan& plan, const Frames& frames, void* out) = 0;
  virtual void resize(const PreparePlan& plan, const Frames& frames, void* out) = 0;
  virtual void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map) = 0;
  virtual void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out) = 0;

 protected:
  virtual std::shared_ptr<std::byte> allocate(std::span<const std::byte> content) = 0;
  virtual void read(const std::byte* from, std::span<std::byte> to) = 0;

 private:
  std::size_t shift_;
  std::map<std::string, PreparePlan> prepare_plans_;
  std::map<std::string, SmoothMapPlan> smooth_map_plans_;
};

constexpr std::byte kPoison{0xa5};

std::unique_ptr<Lane> cpu_lane(std::size_t shift, int threads);
// Throws std::runtime_error without CUDA in the build.
std::unique_ptr<Lane> cuda_lane(std::size_t shift);

}  // namespace kizu::tests
