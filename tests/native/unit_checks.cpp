// What needs no cases: the pool, what the operations refuse, and that they allocate nothing on a line.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "checks.h"
#include "core/parallel.h"
#include "ops/prepare.h"
#include "ops/score.h"
#include "ops/smooth_map.h"

namespace kizu::tests {

namespace {

bool refused(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return *error.what() != '\0';
  }
  return false;
}

int threads_of_process() {
  int count = 0;
  for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator("/proc/self/task")) ++count;
  return count;
}

// A thread that has ended may be listed for a moment, and one that begins not yet.
bool threads_become(int wanted) {
  for (int i = 0; i < 1000 && threads_of_process() != wanted; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return threads_of_process() == wanted;
}

// How many there are once none has come or gone for a while.
int steady_threads() {
  int count = threads_of_process();
  for (int same = 0; same < 50; ++same) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const int now = threads_of_process();
    if (now != count) same = 0;
    count = now;
  }
  return count;
}

void pool_has_the_threads_it_was_given() {
  {
    const ThreadPool warm_up(2);
  }  // a sanitizer starts a thread of its own with the first
  const int before = steady_threads();
  {
    ThreadPool one(1);
    one.run([](int) {});
    EXPECT(one.threads() == 1);
    EXPECT(threads_become(before));
    ThreadPool four(4);
    EXPECT(four.threads() == 4);
    EXPECT(threads_become(before + 3));
  }
  EXPECT(threads_become(before));
  EXPECT(refused([] { ThreadPool none(0); }));
  EXPECT(refused([] { ThreadPool less(-1); }));
}

// Short jobs one after the other: a worker that wakes late must not take a part of the next job for one of its own.
void pool_runs_each_part_once() {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    std::vector<int> runs(static_cast<std::size_t>(threads));  // not atomic: a part belongs to one thread
    constexpr int kJobs = 3000;
    bool right = true;
    for (int job = 1; job <= kJobs; ++job) {
      int of_this_job = job;  // gone when the job is done
      pool.run([&](int part) { runs[static_cast<std::size_t>(part)] += of_this_job == job; });
      for (const int count : runs) right = right && count == job;
    }
    EXPECT(right);
  }
}

PrepareSpec spec_of(int height, int width) {
  PrepareSpec spec{};
  spec.height = spec.resize_height = height;
  spec.width = spec.resize_width = width;
  spec.pool = true;
  spec.tables.assign(5, std::vector<float>(256));
  spec.tables.back().resize(766);
  return spec;
}

template <typename Change>
bool spec_refused(const Change& change) {
  return refused([&] {
    PrepareSpec spec = spec_of(8, 8);
    change(spec);
    PreparePlan plan(spec);
  });
}

void prepare_refuses_what_it_cannot_compute() {
  EXPECT(!spec_refused([](PrepareSpec&) {}));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.height = 0; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.resize_width = -1; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.resize_width = 7; }));  // narrower than the centre crop
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.format.channels = 2; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.format.bit_depth = 17; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.tables.pop_back(); }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.tables[1].pop_back(); }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.tile_rows = 0; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.tile_overlap = -1; }));
  EXPECT(spec_refused([](PrepareSpec& spec) { spec.rotations = 0; }));

  PrepareSpec cropped = spec_of(8, 8);
  cropped.crop = Region{0, 0, 20, 20};
  PreparePlan plan(cropped);
  plan.set_geometry(20, 20);
  EXPECT(refused([&] { plan.set_geometry(19, 20); }));
  EXPECT(refused([&] { plan.set_geometry(20, 19); }));
  EXPECT(refused([&] { plan.set_geometry(0, 0); }));
  cropped.crop = Region{4, 4, 4, 9};
  PreparePlan of_nothing(cropped);
  EXPECT(refused([&] { of_nothing.set_geometry(20, 20); }));

  PrepareSpec boxed = spec_of(8, 8);
  boxed.boxes = true;
  PreparePlan of_boxes(boxed);
  const auto with_box = [&](Region box) { return [&of_boxes, box] { of_boxes.set_geometry(20, 30, {&box, 1}); }; };
  EXPECT(!refused(with_box({0, 0, 30, 20})));
  EXPECT(refused(with_box({0, 0, 31, 20})));
  EXPECT(refused(with_box({-1, 0, 30, 20})));
  EXPECT(refused(with_box({5, 5, 5, 6})));
}

struct Residual {
  std::vector<float> values = std::vector<float>(600);
  std::vector<float> scores = std::vector<float>(4), map = std::vector<float>(600);
  ScoreSpec spec{ScoreRule::residual_feature, 0.5};
  ScoreTensors tensors{4, 3, 50, 7, values.data(), values.data(), values.data(), values.data(), values.data()};
  cpu::ScoreScratch scratch;
  ThreadPool pool{2};

  void run() { cpu::score(spec, tensors, scores.data(), map.data(), scratch, pool); }
};

template <typename Change>
bool score_refused(const Change& change) {
  Residual residual;
  change(residual);
  return refused([&] { residual.run(); });
}

void score_refuses_what_does_not_fit() {
  EXPECT(!score_refused([](Residual&) {}));
  EXPECT(score_refused([](Residual& r) { r.spec.views = 3; }));
  EXPECT(score_refused([](Residual& r) { r.spec.views = 0; }));
  EXPECT(score_refused([](Residual& r) { r.spec.weight = 1.5; }));
  EXPECT(score_refused([](Residual& r) { r.spec.weight = std::numeric_limits<double>::quiet_NaN(); }));
  EXPECT(score_refused([](Residual& r) { r.tensors.images = 0; }));
  EXPECT(score_refused([](Residual& r) { r.tensors.pixels = 0; }));
  EXPECT(score_refused([](Residual& r) { r.tensors.channels = 0; }));
  EXPECT(score_refused([](Residual& r) { r.tensors.features = 0; }));
  EXPECT(score_refused([](Residual& r) { r.tensors.x_hat = nullptr; }));
  EXPECT(score_refused([](Residual& r) { r.tensors.f = nullptr; }));
  EXPECT(score_refused([](Residual& r) {
    r.spec.rule = ScoreRule::residual_logit;
    r.tensors.logit = nullptr;
  }));
  const auto residual_alone = [](Residual& r) {
    r.spec.rule = ScoreRule::residual;
    r.tensors.f = r.tensors.f_hat = r.tensors.logit = nullptr;
    r.tensors.features = 0;
  };
  EXPECT(!score_refused(residual_alone));
  EXPECT(score_refused([&](Residual& r) { residual_alone(r), r.tensors.x_hat = nullptr; }));
}

void smooth_map_refuses_what_is_no_region() {
  EXPECT(!refused([] { SmoothAxis(4, 9, 0, 9, 1); }));
  EXPECT(refused([] { SmoothAxis(0, 9, 0, 9, 1); }));
  EXPECT(refused([] { SmoothAxis(4, 0, 0, 0, 1); }));
  EXPECT(refused([] { SmoothAxis(4, 9, 5, 5, 1); }));
  EXPECT(refused([] { SmoothAxis(4, 9, 0, 10, 1); }));
  EXPECT(refused([] { SmoothAxis(4, 9, 0, 9, -1); }));
}

#if COUNT_ALLOCATIONS
long allocations_of(const std::function<void()>& call) {
  const long before = allocations.load();
  call();
  return allocations.load() - before;
}

// The first call of a geometry may allocate, those after it not.
void nothing_is_allocated_on_a_line() {
  EXPECT(allocations_of([] { ::operator delete(::operator new(1)); }) == 1);
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (const int rotations : {1, 3}) {
      PrepareSpec spec = spec_of(40, 33);
      spec.tile_columns = 2;
      spec.rotations = rotations;
      PreparePlan plan(spec);
      cpu::PrepareScratch scratch;
      std::vector<std::uint8_t> memory(120 * 90 * 3);
      const std::vector<const void*> data(2, memory.data());
      std::vector<float> out(std::size_t{2} * 2 * rotations * 5 * 40 * 33);
      const auto frame = [&] {
        plan.set_geometry(90, 120);
        cpu::prepare(plan, {data, 90, 120, 360, 3, 1}, out.data(), scratch, pool);
      };
      frame();
      EXPECT(allocations_of(frame) == 0);
    }
    SmoothMapPlan plan{SmoothAxis(12, 90, 0, 90, 3), SmoothAxis(10, 77, 1, 76, 3)};
    cpu::SmoothMapScratch scratch;
    std::vector<float> map(2 * 12 * 10), out(2 * 90 * 77);
    const auto smooth = [&] { cpu::smooth_map(plan, 2, map.data(), out.data(), scratch, pool); };
    smooth();
    EXPECT(allocations_of(smooth) == 0);
  }
  Residual residual;
  residual.run();
  EXPECT(allocations_of([&] { residual.run(); }) == 0);
  residual.spec.views = 2;
  residual.run();
  EXPECT(allocations_of([&] { residual.run(); }) == 0);
}
#else
void nothing_is_allocated_on_a_line() {}
#endif

}  // namespace

}  // namespace kizu::tests

int main() try {
  using namespace kizu::tests;
  pool_has_the_threads_it_was_given();
  pool_runs_each_part_once();
  prepare_refuses_what_it_cannot_compute();
  score_refuses_what_does_not_fit();
  smooth_map_refuses_what_is_no_region();
  nothing_is_allocated_on_a_line();
  return summary();
} catch (const std::exception& error) {
  std::printf("%d checks, then: %s\n", kizu::tests::checks.load(), error.what());
  return 1;
}
