#include <cstring>

#include "lane.h"

namespace kizu::tests {

namespace {

class CpuLane final : public Lane {
 public:
  CpuLane(std::size_t shift, int threads) : Lane(shift), pool_(threads) {}

  void prepare(const PreparePlan& plan, const Frames& frames, void* out) override {
    cpu::prepare(plan, frames, out, prepare_, pool_);
  }
  void resize(const PreparePlan& plan, const Frames& frames, void* out) override {
    cpu::resize(plan, frames, out, prepare_, pool_);
  }
  void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map) override {
    cpu::score(spec, tensors, scores, map, score_, pool_);
  }
  void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out) override {
    cpu::smooth_map(plan, maps, map, out, smooth_map_, pool_);
  }

 private:
  std::shared_ptr<std::byte> allocate(std::span<const std::byte> content) override {
    std::shared_ptr<std::byte> memory(new std::byte[content.size()], std::default_delete<std::byte[]>());
    std::memcpy(memory.get(), content.data(), content.size());
    return memory;
  }
  void read(const std::byte* from, std::span<std::byte> to) override { std::memcpy(to.data(), from, to.size()); }

  ThreadPool pool_;
  cpu::PrepareScratch prepare_;
  cpu::SmoothMapScratch smooth_map_;
  cpu::ScoreScratch score_;
};

}  // namespace

std::unique_ptr<Lane> cpu_lane(std::size_t shift, int threads) { return std::make_unique<CpuLane>(shift, threads); }

}  // namespace kizu::tests
