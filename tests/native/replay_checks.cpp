// The pipeline of a CUDA device on emulated CUDA, against the operations on the processor, with an engine that is a
// host function between two copies. Where CUDA is compiled in, these are the only checks of captures that sanitizers
// see.
#include <cstdio>

#ifdef KIZU_HAS_CUDA

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "checks.h"
#include "core/cuda_check.h"
#include "pipeline/frame_slot.h"
#include "pipeline/replay.h"

namespace kizu::tests {

namespace {

// Of an image the weighted sum of every 97th element.
float engine_of(const float* x, std::size_t elements) {
  float sum = 0;
  for (std::size_t i = 0; i < elements; i += 97) sum = sum + static_cast<float>(i % 7 + 1) * x[i];
  return sum;
}

class StandIn : public cuda::Runner {
 public:
  StandIn(int images, std::size_t elements, const std::vector<cuda::Tensor>& tensors)
      : images_(images),
        elements_(elements),
        x_(tensors.at(0).data),
        logit_(tensors.at(1).data),
        host_((elements + 1) * images * sizeof(float)) {}

  void enqueue(const cuda::Stream& stream) override {
    auto* const x = static_cast<float*>(host_.data());
    const std::size_t size = elements_ * images_ * sizeof(float);
    KIZU_CUDA_CHECK(cudaMemcpyAsync(x, x_, size, cudaMemcpyDeviceToHost, stream.get()));
    KIZU_CUDA_CHECK(cudaLaunchHostFunc(stream.get(), &StandIn::compute, this));
    KIZU_CUDA_CHECK(cudaMemcpyAsync(logit_, x + elements_ * images_, images_ * sizeof(float), cudaMemcpyHostToDevice,
                                    stream.get()));
    ++enqueued;
  }
  bool capturable(const cuda::Stream&) override { return true; }

  static inline std::atomic<int> enqueued = 0;

 private:
  static void compute(void* self) {
    const auto& [images, elements, x, logit, host] = *static_cast<StandIn*>(self);
    auto* const values = static_cast<float*>(host.data());
    for (int i = 0; i < images; ++i) values[elements * images + i] = engine_of(values + elements * i, elements);
  }

  int images_;
  std::size_t elements_;
  void *x_, *logit_;
  cuda::PinnedBuffer host_;
};

PrepareSpec spec_of(int rotations) {
  PrepareSpec spec;
  spec.height = spec.resize_height = 33;
  spec.width = spec.resize_width = 40;
  spec.rotations = rotations;
  spec.pool = true;
  for (const int entries : {256, 256, 256, 256, 766}) {
    auto& table = spec.tables.emplace_back();
    for (int i = 0; i < entries; ++i) table.push_back(static_cast<float>(i) * 0.01f - 1);
  }
  return spec;
}

std::vector<std::uint8_t> noise(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(size);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// The pipeline on the device, and what it must give.
class Pair {
 public:
  explicit Pair(int rotations = 1, int frames = 3, int threads = 1) : spec_(spec_of(rotations)), plan_(spec_) {
    elements_ = std::size_t{5} * spec_.height * spec_.width;
    cuda::ReplaySpec spec{.prepare = spec_,
                          .score = {ScoreRule::logit, 0, false, 1, Reduce::max},
                          .threads = threads,
                          .inputs = frames * rotations,
                          .input = "x",
                          .outputs = {{"logit", sizeof(float)}},
                          .workspace = 256};
    const auto elements = elements_;
    replay = std::make_unique<cuda::Replay>(
        std::move(spec), [elements](int images, const std::vector<cuda::Tensor>& tensors, void* workspace) {
          EXPECT(reinterpret_cast<std::uintptr_t>(workspace) % 256 == 0);
          return std::make_unique<StandIn>(images, elements, tensors);
        });
  }

  std::vector<float> expected(const Frames& frames) {
    plan_.set_geometry(frames.height, frames.width);
    const int images = static_cast<int>(frames.data.size()) * plan_.inputs();
    std::vector<float> x(elements_ * images), logit(images), scores(frames.data.size());
    cpu::PrepareScratch prepare;
    cpu::ScoreScratch score;
    cpu::prepare(plan_, frames, x.data(), prepare, pool_);
    for (int i = 0; i < images; ++i) logit[i] = engine_of(x.data() + i * elements_, elements_);
    ScoreTensors tensors;
    tensors.images = images;
    tensors.logit = logit.data();
    cpu::score({ScoreRule::logit, 0, false, plan_.inputs(), Reduce::max}, tensors, scores.data(), nullptr, score,
               pool_);
    return scores;
  }

  // `there`: the same frames where the replay finds them.
  void agree(const Frames& frames, const Frames& there, cuda::Replay::Place place) {
    const std::vector<float> scores = expected(frames);
    replay->start(there, place, {}, false);
    replay->finish();
    EXPECT(std::memcmp(replay->scores(), scores.data(), scores.size() * sizeof(float)) == 0);
  }

  std::unique_ptr<cuda::Replay> replay;

 private:
  PrepareSpec spec_;
  PreparePlan plan_;
  ThreadPool pool_{1};
  std::size_t elements_;
};

constexpr auto kHost = cuda::Replay::Place::host;
constexpr auto kDevice = cuda::Replay::Place::device;

void host_frames_are_scored_as_on_the_processor() {
  for (const int rotations : {1, 3}) {
    Pair pair(rotations);
    unsigned seed = 0;
    for (const std::ptrdiff_t width : {50, 50, 61}) {
      for (const std::size_t count : {1, 3, 1}) {
        const auto memory = noise(3 * 45 * 200, seed++);
        std::vector<const void*> data;
        for (std::size_t i = 0; i < count; ++i) data.push_back(memory.data() + i * 45 * 200);
        const Frames dense{data, 45, width, 3 * width, 3, 1}, gaps{data, 45, width, 199, 3, 1};
        pair.agree(dense, dense, kHost);
        pair.agree(gaps, gaps, kHost);
        const Frames planes{data, 40, width, width, 1, 40 * width};
        if (width == 50) pair.agree(planes, planes, kHost);
      }
    }
    const auto& counts = pair.replay->counts();
    EXPECT(counts.updates == 0);
    EXPECT(counts.launches > counts.captures);
  }
}

void large_frames_are_copied_by_several_threads() {
  Pair pair(1, 1, 3);
  for (unsigned seed = 0; seed < 3; ++seed) {
    const auto memory = noise(std::size_t{401} * 1000, seed);
    const std::vector<const void*> data = {memory.data()};
    for (const std::ptrdiff_t row : {900, 1000})
      pair.agree({data, 401, 300, row, 3, 1}, {data, 401, 300, row, 3, 1}, kHost);
  }
}

void device_frames_are_read_where_they_lie() {
  Pair pair(2);
  const auto memory = noise(std::size_t{46} * 200, 7);
  cuda::Stream stream;
  cuda::DeviceBuffer first, second;
  first.assign(memory.data(), memory.size(), stream);
  second.assign(memory.data(), memory.size(), stream);
  std::uint64_t updates = 0;
  for (const auto* at : {&first, &first, &second, &first})
    for (const std::ptrdiff_t row : {150, 160, 199}) {
      const std::vector<const void*> here = {memory.data() + 5}, there = {static_cast<char*>(at->data()) + 5};
      pair.agree({here, 45, 50, row, 3, 1}, {there, 45, 50, row, 3, 1}, kDevice);
      EXPECT(pair.replay->counts().updates - updates == (updates || row != 150 ? 1 : 0));
      updates = pair.replay->counts().updates;
    }
  EXPECT(pair.replay->counts().captures == 1);
}

void the_frame_buffer_is_read_where_it_lies() {
  Pair pair;
  const auto buffer = pair.replay->frame_buffer(45, 50);
  EXPECT(pair.replay->frame_buffer(45, 50) == buffer);
  auto* const pixels = static_cast<std::uint8_t*>(buffer->data());
  const auto agree = [&](std::vector<const void*> data, std::ptrdiff_t height, std::ptrdiff_t width,
                         std::ptrdiff_t row) {
    const Frames frames{data, height, width, row, 3, 1};
    pair.agree(frames, frames, kHost);
  };
  const auto other = noise(45 * 150, 99);
  for (unsigned seed = 0; seed < 3; ++seed) {
    const auto memory = noise(45 * 150, seed);
    std::memcpy(pixels, memory.data(), memory.size());
    agree({pixels}, 45, 50, 150);
    // Parts of it, and batches that contain it, are frames like others.
    agree({pixels}, 45, 40, 150);
    agree({pixels + 150}, 44, 50, 150);
    agree({pixels + 44 * 150}, 45, 50, -150);
    agree({other.data(), pixels}, 45, 50, 150);
    agree({other.data()}, 45, 50, 150);
    EXPECT(std::memcmp(pixels, memory.data(), memory.size()) == 0);  // nobody else writes there
  }
  const auto larger = pair.replay->frame_buffer(46, 50);
  EXPECT(larger != buffer);
  agree({pixels}, 45, 50, 150);
  const auto again = pair.replay->frame_buffer(45, 50);  // other memory, of the size that a graph was captured for
  std::memcpy(again->data(), other.data(), other.size());
  agree({again->data()}, 45, 50, 150);
  agree({larger->data()}, 46, 50, 150);
}

template <typename Call>
bool throws(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void what_makes_no_sense_is_refused() {
  Pair pair;
  const auto memory = noise(45 * 150, 0);
  const std::vector<const void*> one = {memory.data()}, four(4, memory.data());
  const Frames frame{one, 45, 50, 150, 3, 1};
  EXPECT(throws([&] { pair.replay->finish(); }));
  EXPECT(throws([&] { pair.replay->start({{}, 45, 50, 150, 3, 1}, kHost, {}, false); }));
  EXPECT(throws([&] { pair.replay->start({four, 45, 50, 150, 3, 1}, kHost, {}, false); }));
  EXPECT(throws([&] { pair.replay->start(frame, kHost, {}, true); }));
  EXPECT(throws([&] { pair.replay->frame_buffer(0, 5); }));
  pair.replay->start(frame, kHost, {}, false);  // is dropped
  pair.agree(frame, frame, kHost);
  pair.replay->start(frame, kHost, {}, false);  // and is left in flight
}

void a_frame_allocates_nothing() {
#if COUNT_ALLOCATIONS
  Pair pair;
  const auto memory = noise(45 * 200, 0);
  cuda::Stream stream;
  cuda::DeviceBuffer device;
  device.assign(memory.data(), memory.size(), stream);
  const std::vector<const void*> here = {memory.data()}, there = {device.data()};
  const auto run = [&](const Frames& frames, cuda::Replay::Place place) {
    pair.replay->start(frames, place, {}, false);
    pair.replay->finish();
  };
  for (int i = 0; i < 4; ++i) {
    const long before = allocations;
    run({here, 45, 50, 150, 3, 1}, kHost);
    run({here, 45, 50, 200, 3, 1}, kHost);
    run({there, 45, 50, 150, 3, 1}, kDevice);
    run({there, 45, 50, 200, 3, 1}, kDevice);
    if (i == 0) EXPECT(allocations > before);  // so that the count does count
    if (i >= 2) EXPECT(allocations == before);
  }
  const int enqueued = StandIn::enqueued;
  run({here, 45, 50, 150, 3, 1}, kHost);
  EXPECT(StandIn::enqueued == enqueued);
#endif
}

void threads_have_a_slot_each() {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed)
    threads.emplace_back([seed] {
      Pair pair;
      for (unsigned i = 0; i < 6; ++i) {
        const auto memory = noise(45 * 150, 10 * seed + i);
        const std::vector<const void*> data = {memory.data()};
        const Frames frame{data, 45, i < 3 ? 50 : 48, 150, 3, 1};
        pair.agree(frame, frame, kHost);
      }
    });
  for (auto& thread : threads) thread.join();
}

}  // namespace

}  // namespace kizu::tests

int main() try {
  using namespace kizu::tests;
  host_frames_are_scored_as_on_the_processor();
  large_frames_are_copied_by_several_threads();
  device_frames_are_read_where_they_lie();
  the_frame_buffer_is_read_where_it_lies();
  what_makes_no_sense_is_refused();
  a_frame_allocates_nothing();
  threads_have_a_slot_each();
  return summary();
} catch (const std::exception& error) {
  std::printf("%d checks, then: %s\n", kizu::tests::checks.load(), error.what());
  return 1;
}

#else

int main() { std::printf("0 checks, 0 failures: built without CUDA\n"); }

#endif
