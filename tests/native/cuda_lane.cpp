#include <stdexcept>

#include "lane.h"

namespace kizu::tests {

#ifdef KIZU_HAS_CUDA

namespace {

class CudaLane final : public Lane {
 public:
  using Lane::Lane;

  void prepare(const PreparePlan& plan, const Frames& frames, void* out) override {
    cuda::prepare(plan, frames, out, prepare_, stream_);
  }
  void resize(const PreparePlan& plan, const Frames& frames, void* out) override {
    cuda::resize(plan, frames, out, prepare_, stream_);
  }
  void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map) override {
    cuda::score(spec, tensors, scores, map, score_, stream_);
  }
  void smooth_map(const SmoothMapPlan& plan, int maps, const float* map, float* out) override {
    cuda::smooth_map(plan, maps, map, out, smooth_map_, stream_);
  }

 private:
  std::shared_ptr<std::byte> allocate(std::span<const std::byte> content) override {
    const auto buffer = std::make_shared<cuda::DeviceBuffer>();
    return {buffer, static_cast<std::byte*>(buffer->assign(content.data(), content.size(), stream_))};
  }
  void read(const std::byte* from, std::span<std::byte> to) override {
    cuda::copy_to_host(to.data(), from, to.size(), stream_);
  }

  cuda::Stream stream_;
  cuda::PrepareScratch prepare_;
  cuda::SmoothMapScratch smooth_map_;
  cuda::ScoreScratch score_;
};

}  // namespace

std::unique_ptr<Lane> cuda_lane(std::size_t shift) {
  if (cuda::device_count() == 0) throw std::runtime_error("there is no CUDA device");
  return std::make_unique<CudaLane>(shift);
}

#else

std::unique_ptr<Lane> cuda_lane(std::size_t) { throw std::runtime_error("this build is without CUDA"); }

#endif

}  // namespace kizu::tests
