#include "block.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "error.h"
#include "execution.h"
#include "faults.h"
#include "fiber.h"
#include "memory.h"
#include "options.h"
#include "sanitizers.h"
#include "shared_memory.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim(1, 1, 1);
dim3 gridDim(1, 1, 1);

namespace cuda_on_cpu {

namespace {

constexpr unsigned kMaxThreads = 1024;  // of a block
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;
// What a shuffle from a lane that does not take part returns, which CUDA leaves undefined: a NaN in float and double.
constexpr std::uint64_t kUndefinedShuffle = 0x7fc0dead7fc0dead;

enum class State { fresh, runnable, at_barrier, at_warp_operation, exited };

struct Thread {
  uint3 index = {};
  State state = State::fresh;
  Fiber* fiber = nullptr;
  Site site = {};
  // What it brought to the barrier or warp operation where it waits, and what it takes from there.
  BlockVote vote = BlockVote::none;
  bool predicate = false;
  WarpOperation operation = WarpOperation::sync;
  unsigned mask = 0;
  unsigned offset = 0;
  unsigned clamp = 0;
  std::uint64_t value = 0;
  WarpResult result = {};
};

struct Warp {
  unsigned existing = 0;  // lanes; fewer than 32 in a partial last warp
  unsigned waiting = 0;   // at a warp operation
  unsigned exited = 0;
  unsigned syncs = 0;  // warp operations done, which picks the TSan order below
};

// What orders threads of one block. Successive barriers alternate between two orders, so that an early thread at one
// barrier is not ordered by a late one at the barrier before.
struct BlockOrders {
  std::array<tsan::Order, 2> barrier;
  std::array<std::array<tsan::Order, 2>, kMaxWarps> warp;
};

bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.instruction == b.instruction && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Much of what follows runs on the fibers themselves, where TSan takes each allocation and each call of memmove for
// the CUDA thread's own. So it neither allocates nor copies: the containers have their full size from the beginning.

// Fibers of exited threads. Under TSan a fiber is a thread with a past that precedes all it does later, so a fiber
// rests for a block before it serves again: races between neighbouring blocks stay visible.
class FiberPool {
 public:
  FiberPool() {
    for (auto* fibers : {&idle_, &used_now_, &used_before_}) fibers->reserve(3 * kMaxThreads);
  }

  // Makes fibers until `count` are idle. On the host, because a fiber inherits the past of who makes it.
  void prepare(std::size_t count, void (*entry)()) {
    while (idle_.size() < count) idle_.push_back(new Fiber(entry, options().stack_bytes));
  }

  Fiber* take() {
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  void give(Fiber* fiber) { (tsan::active() ? used_now_ : idle_).push_back(fiber); }

  void end_block() {
    idle_.insert(idle_.end(), used_before_.begin(), used_before_.end());
    used_before_.swap(used_now_);
    used_now_.clear();
  }

 private:
  std::vector<Fiber*> idle_;
  std::vector<Fiber*> used_now_;
  std::vector<Fiber*> used_before_;
};

// Threads that can go on. Forward and reverse order take the one that has waited longest, random order takes any.
class RunnableThreads {
 public:
  bool empty() const { return count_ == 0; }
  void clear() { count_ = 0; }
  void add(int thread) { at(count_++) = thread; }

  int take() {
    if (options().order == Order::random) std::swap(at(0), at(random_below(count_)));
    const int thread = at(0);
    first_ = (first_ + 1) % kMaxThreads;
    --count_;
    return thread;
  }

 private:
  int& at(std::size_t i) { return ring_[(first_ + i) % kMaxThreads]; }

  std::array<int, kMaxThreads> ring_;
  std::size_t first_ = 0;
  std::size_t count_ = 0;
};

// Everything about the running grid. One at a time: the caller holds the lock of the runtime's entry points.
struct Runtime {
  const Grid* grid = nullptr;
  Fiber host;
  FiberPool fibers;

  std::vector<Thread> threads;
  std::array<Warp, kMaxWarps> warps;
  std::vector<int> start_order;  // the threads, as they are started
  std::size_t started = 0;
  RunnableThreads runnable;
  int current = 0;
  std::size_t exited = 0;
  std::size_t at_barrier = 0;
  int vote_result = 0;
  unsigned barriers = 0;

  tsan::Order launch_order;
  tsan::Order end_order;
  tsan::Order fence_order;
  // Blocks share no order; a ring long enough that two blocks which do are far apart.
  std::array<BlockOrders, 512> block_orders;
  std::size_t blocks_run = 0;

  BlockOrders& orders() { return block_orders[blocks_run % block_orders.size()]; }
};

// Never destroyed: the sanitizers remember its fibers.
Runtime& runtime = *new Runtime;
GridObserver observer = {};
bool in_kernel = false;

Thread& current_thread() { return runtime.threads[static_cast<std::size_t>(runtime.current)]; }

[[noreturn]] void fail_at_barrier(const Thread& waiting, int waiting_number, const Thread& other, int other_number) {
  if (other.state == State::exited)
    fail("divergent barrier: thread %d waits at %s:%d, thread %d has exited", waiting_number, waiting.site.file,
         waiting.site.line, other_number);
  fail("divergent barrier: thread %d waits at %s:%d, thread %d at %s:%d%s", waiting_number, waiting.site.file,
       waiting.site.line, other_number, other.site.file, other.site.line,
       other.state == State::at_warp_operation ? " in a warp operation" : "");
}

// Nobody can run, so the block is either complete at a barrier or stuck.
void complete_barrier() {
  auto& threads = runtime.threads;
  const auto number = [&](const Thread& t) { return static_cast<int>(&t - threads.data()); };
  const auto is_waiting = [](const Thread& t) { return t.state == State::at_barrier; };

  if (runtime.at_barrier != threads.size()) {
    const auto waiting = std::find_if(threads.begin(), threads.end(), is_waiting);
    const auto other = std::find_if_not(threads.begin(), threads.end(), is_waiting);
    if (waiting != threads.end()) fail_at_barrier(*waiting, number(*waiting), *other, number(*other));
    const auto stuck = std::find_if(threads.begin(), threads.end(),
                                    [](const Thread& t) { return t.state == State::at_warp_operation; });
    fail("deadlock: thread %d waits at %s:%d in a warp operation of mask %08x whose other lanes never come",
         number(*stuck), stuck->site.file, stuck->site.line, stuck->mask);
  }

  const Thread& first = threads.front();
  int count = 0;
  for (const Thread& t : threads) {
    if (!same(t.site, first.site)) fail_at_barrier(first, 0, t, number(t));
    count += t.predicate;
  }
  switch (first.vote) {
    case BlockVote::none:
      runtime.vote_result = 0;
      break;
    case BlockVote::any:
      runtime.vote_result = count > 0;
      break;
    case BlockVote::all:
      runtime.vote_result = count == static_cast<int>(threads.size());
      break;
    case BlockVote::count:
      runtime.vote_result = count;
      break;
  }
  ++runtime.barriers;
  runtime.at_barrier = 0;
  for (const int i : runtime.start_order) {
    threads[static_cast<std::size_t>(i)].state = State::runnable;
    runtime.runnable.add(i);
  }
}

// The thread to run next. Call it only while some thread has not exited.
int pick_thread() {
  const bool fresh = runtime.started < runtime.start_order.size();
  if (!fresh && runtime.runnable.empty()) complete_barrier();
  const bool start = fresh && (runtime.runnable.empty() || options().order != Order::random || random_below(2) == 0);
  return start ? runtime.start_order[runtime.started++] : runtime.runnable.take();
}

void make_current(int thread) {
  runtime.current = thread;
  threadIdx = current_thread().index;
}

// Each fiber runs this for ever: the current thread from its beginning to its end, then whichever is next.
void fiber_main();

// Leaves the current thread, which waits, for the next one; returns when it is this thread's turn again. The host
// starts a block with it, and returns after the last thread.
void switch_to_next_thread() {
  make_current(pick_thread());
  Thread& next = current_thread();
  if (next.state == State::fresh) {
    next.state = State::runnable;
    next.fiber = runtime.fibers.take();
  }
  if (next.fiber != Fiber::running()) next.fiber->switch_to();
}

void exit_thread() {
  Thread& self = current_thread();
  self.state = State::exited;
  ++runtime.exited;
  Warp& warp = runtime.warps[static_cast<std::size_t>(runtime.current) / kWarpSize];
  const unsigned bit = 1u << (static_cast<unsigned>(runtime.current) % kWarpSize);
  warp.exited |= bit;
  if (!warp.waiting) return;
  const std::size_t base = static_cast<std::size_t>(runtime.current) / kWarpSize * kWarpSize;
  for (std::size_t l = 0; l < kWarpSize; ++l) {
    if (!(warp.waiting >> l & 1)) continue;
    const Thread& waiting = runtime.threads[base + l];
    if (waiting.mask & bit)
      fail("lane %zu waits at %s:%d in a warp operation of mask %08x, which names this lane; but it exits", l,
           waiting.site.file, waiting.site.line, waiting.mask);
  }
}

void fiber_main() {
  Fiber::entered();
  for (;;) {
    tsan::acquire(runtime.launch_order);
    runtime.grid->call->run_thread();
    tsan::release(runtime.end_order);
    exit_thread();

    Fiber* const self = Fiber::running();
    if (runtime.exited == runtime.threads.size()) {
      runtime.fibers.give(self);
      runtime.host.switch_to();
      continue;
    }
    make_current(pick_thread());
    Thread& next = current_thread();
    if (next.state == State::fresh && !tsan::active()) {  // the stack is free: no switch needed
      next.state = State::runnable;
      next.fiber = self;
      continue;
    }
    if (next.state == State::fresh) {
      next.state = State::runnable;
      next.fiber = runtime.fibers.take();
    }
    runtime.fibers.give(self);
    next.fiber->switch_to();
  }
}

std::vector<std::size_t> ordered(std::size_t count) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (options().order == Order::reverse) std::reverse(order.begin(), order.end());
  if (options().order == Order::random)
    for (std::size_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  return order;
}

void run_block() {
  auto& threads = runtime.threads;
  begin_block_shared(runtime.grid->dynamic_shared_bytes, runtime.grid->shared_limit);
  tsan::release(runtime.launch_order);
  for (Thread& t : threads) t.state = State::fresh;
  for (std::size_t w = 0; w * kWarpSize < threads.size(); ++w) {
    const std::size_t lanes = std::min<std::size_t>(kWarpSize, threads.size() - w * kWarpSize);
    runtime.warps[w] = {.existing = static_cast<unsigned>((std::uint64_t{1} << lanes) - 1)};
  }
  const auto order = ordered(threads.size());
  runtime.start_order.assign(order.begin(), order.end());
  runtime.started = runtime.exited = runtime.at_barrier = 0;
  runtime.runnable.clear();
  runtime.fibers.prepare(threads.size(), fiber_main);

  in_kernel = true;
  switch_to_next_thread();  // returns when the last thread has exited
  end_block_shared();
  in_kernel = false;

  runtime.fibers.end_block();
  ++runtime.blocks_run;
}

// The lane that a shuffle reads and whether it lies within the segment: shfl.sync in the PTX manual.
unsigned source_lane(const Thread& t, unsigned lane, bool* in_range) {
  const unsigned segment = t.clamp >> 8 & 31;
  const unsigned clamp = t.clamp & 31;
  const unsigned last = (lane & segment) | (clamp & ~segment);
  const unsigned offset = t.offset & 31;
  unsigned source = lane;
  switch (t.operation) {
    case WarpOperation::shuffle_up:
      source = lane - offset;
      *in_range = static_cast<int>(source) >= static_cast<int>(last);
      break;
    case WarpOperation::shuffle_down:
      source = lane + offset;
      *in_range = source <= last;
      break;
    case WarpOperation::shuffle_xor:
      source = lane ^ offset;
      *in_range = source <= last;
      break;
    default:
      source = (lane & segment) | (offset & ~segment);
      *in_range = source <= last;
      break;
  }
  return *in_range ? source : lane;
}

// Gives the lanes of `mask`, which have all come, their results and lets them run.
void complete_warp_operation(std::size_t base, unsigned mask, const Thread& caller, unsigned caller_lane) {
  Thread* const lanes = &runtime.threads[base];
  unsigned ballot = 0;
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (!(mask >> l & 1)) continue;
    const Thread& t = lanes[l];
    if (!same(t.site, caller.site) || t.mask != caller.mask || t.operation != caller.operation)
      fail("lanes disagree about a warp operation: lane %u at %s:%d with mask %08x, lane %u at %s:%d with mask %08x",
           caller_lane, caller.site.file, caller.site.line, caller.mask, l, t.site.file, t.site.line, t.mask);
    ballot |= static_cast<unsigned>(t.value & 1) << l;
  }
  for (unsigned l = 0; l < kWarpSize; ++l) {
    if (!(mask >> l & 1)) continue;
    Thread& t = lanes[l];
    switch (t.operation) {
      case WarpOperation::sync:
        break;
      case WarpOperation::ballot:
        t.result = {ballot, true};
        break;
      case WarpOperation::all:
        t.result = {ballot == mask, true};
        break;
      default: {
        bool in_range = false;
        const unsigned source = source_lane(t, l, &in_range);
        const bool takes_part = mask >> source & 1;
        t.result = {takes_part ? lanes[source].value : kUndefinedShuffle, in_range};
      }
    }
    t.state = State::runnable;
    runtime.runnable.add(static_cast<int>(base + l));
  }
}

}  // namespace

KernelCall::~KernelCall() = default;

bool kernel_is_running() { return in_kernel; }

void observe_grids(const GridObserver& with) { observer = with; }

void run(const Grid& grid) {
  open_device_memory();
  prepare_fault_stack();
  runtime.host.adopt_thread();
  runtime.grid = &grid;
  gridDim = grid.blocks;
  blockDim = grid.threads;
  const dim3 b = grid.threads;
  const dim3 g = grid.blocks;
  runtime.threads.assign(std::size_t{b.x} * b.y * b.z, Thread{});
  for (unsigned i = 0; i < runtime.threads.size(); ++i)
    runtime.threads[i].index = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};

  if (observer.grid_begins) observer.grid_begins(grid);
  for (const std::size_t i : ordered(std::size_t{g.x} * g.y * g.z)) {
    blockIdx = {static_cast<unsigned>(i % g.x), static_cast<unsigned>(i / g.x % g.y),
                static_cast<unsigned>(i / g.x / g.y)};
    run_block();
    if (observer.block_ended) observer.block_ended();
  }
  if (observer.grid_ended) observer.grid_ended();
  check_canaries();
  tsan::acquire(runtime.end_order);
}

int barrier(Site site, BlockVote vote, bool predicate) {
  Thread& self = current_thread();
  tsan::Order& order = runtime.orders().barrier[runtime.barriers % 2];
  self.state = State::at_barrier;
  self.site = site;
  self.vote = vote;
  self.predicate = predicate;
  ++runtime.at_barrier;
  tsan::release(order);
  switch_to_next_thread();
  tsan::acquire(order);
  return runtime.vote_result;
}

WarpResult warp_operation(Site site, WarpOperation operation, unsigned mask, std::uint64_t value, unsigned offset,
                          unsigned clamp) {
  const int me = runtime.current;
  const std::size_t base = static_cast<std::size_t>(me) / kWarpSize * kWarpSize;
  const unsigned lane = static_cast<unsigned>(me) % kWarpSize;
  Warp& warp = runtime.warps[base / kWarpSize];
  Thread& self = current_thread();
  // Lanes that do not exist in a partial last warp are not waited for.
  const unsigned needed = mask & warp.existing;
  if (!(mask >> lane & 1))
    fail("lane %u at %s:%d calls a warp operation whose mask %08x lacks it", lane, site.file, site.line, mask);
  if (needed & warp.exited)
    fail("the mask %08x of the warp operation at %s:%d names lane %d, which has exited", mask, site.file, site.line,
         __builtin_ctz(needed & warp.exited));

  self.state = State::at_warp_operation;
  self.site = site;
  self.operation = operation;
  self.mask = mask;
  self.value = value;
  self.offset = offset;
  self.clamp = clamp;
  // Only __syncwarp orders memory; a shuffle does not.
  tsan::Order& order = runtime.orders().warp[base / kWarpSize][warp.syncs % 2];
  if (operation == WarpOperation::sync) tsan::release(order);

  warp.waiting |= 1u << lane;
  if ((warp.waiting & needed) == needed) {
    complete_warp_operation(base, needed, self, lane);
    warp.waiting &= ~needed;
    warp.syncs += operation == WarpOperation::sync;
  }
  switch_to_next_thread();
  if (operation == WarpOperation::sync) tsan::acquire(order);
  return self.result;
}

unsigned active_mask() {
  const Warp& warp = runtime.warps[static_cast<std::size_t>(runtime.current) / kWarpSize];
  return warp.existing & ~warp.exited;
}

void fence() {
  tsan::release(runtime.fence_order);
  tsan::acquire(runtime.fence_order);
}

}  // namespace cuda_on_cpu
