// Graphs that are used as they should be.

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>

#include "buffers.h"
#include "core/cuda_kernel.cuh"
#include "graphs.h"
#include "planted.h"

namespace planted {

namespace {

using Words = std::vector<std::uint32_t>;

constexpr int kCount = 333;
constexpr int kThreads = 128;
constexpr int kBlocks = 3;

__global__ void affine(const std::uint32_t* __restrict__ x, std::uint32_t factor, std::uint32_t offset, int count,
                       std::uint32_t* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = factor * x[i] + offset;
}

__global__ void add(const std::uint32_t* __restrict__ x, const std::uint32_t* __restrict__ y, int count,
                    std::uint32_t* __restrict__ out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = x[i] + y[i];
}

void launch_affine(cudaStream_t stream, const Buffer<std::uint32_t>& x, std::uint32_t factor, std::uint32_t offset,
                   const Buffer<std::uint32_t>& out) {
  kizu::cuda::launch(affine, kBlocks, kThreads, 0, stream, x.data(), factor, offset, kCount, out.data());
}

void launch_add(cudaStream_t stream, const Buffer<std::uint32_t>& x, const Buffer<std::uint32_t>& y,
                const Buffer<std::uint32_t>& out) {
  kizu::cuda::launch(add, kBlocks, kThreads, 0, stream, x.data(), y.data(), kCount, out.data());
}

void upload(const Buffer<std::uint32_t>& to, const Pinned<std::uint32_t>& from, cudaStream_t stream) {
  KIZU_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), from.bytes(), cudaMemcpyHostToDevice, stream));
}

void download(const Pinned<std::uint32_t>& to, const Buffer<std::uint32_t>& from, cudaStream_t stream) {
  KIZU_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), to.bytes(), cudaMemcpyDeviceToHost, stream));
}

Words window(const Words& words, int from) { return {words.begin() + from, words.begin() + from + kCount}; }

Result result(const char* name, const std::vector<Words>& parts) {
  std::vector<char> bytes;
  for (const Words& part : parts) {
    const auto* begin = reinterpret_cast<const char*>(part.data());
    bytes.insert(bytes.end(), begin, begin + part.size() * sizeof part[0]);
  }
  return {name, bytes};
}

// Frames through one pinned slot: copy in, kernel, a host function that stands for an engine, kernel, copy out.
Result replay_sample(const Words& words) {
  const Stream stream;
  const Event done;
  const Pinned<std::uint32_t> slot(kCount);
  const Pinned<std::uint32_t> staged(kCount);
  const Pinned<std::uint32_t> score(kCount);
  const Buffer<std::uint32_t> x(kCount);
  const Buffer<std::uint32_t> y(kCount);

  const auto engine = [](void* data) {
    auto* values = static_cast<std::uint32_t*>(data);
    for (int i = 0; i < kCount; ++i) values[i] ^= 0x5a5a5a5au;
  };
  Capture capture(stream);
  upload(x, slot, stream);
  launch_affine(stream, x, 3, 1, y);
  download(staged, y, stream);
  KIZU_CUDA_CHECK(cudaLaunchHostFunc(stream, engine, staged.data()));
  upload(x, staged, stream);
  launch_affine(stream, x, 5, 7, y);
  download(score, y, stream);
  Graph graph(capture);
  graph.forget_nodes();

  std::vector<Words> scores;
  for (int frame = 0; frame < 20; ++frame) {
    slot.assign(window(words, 11 * frame));
    graph.launch(stream);
    KIZU_CUDA_CHECK(cudaEventRecord(done, stream));
    KIZU_CUDA_CHECK(cudaEventSynchronize(done));
    scores.push_back(score.values());
  }
  return result("replay", scores);
}

// Two branches of one capture, joined before its end.
Result fork_join_sample(const Words& words) {
  const Stream main;
  const Stream side;
  const Event fork;
  const Event join;
  const Pinned<std::uint32_t> in(kCount);
  const Pinned<std::uint32_t> out(kCount);
  const Buffer<std::uint32_t> x(kCount);
  const Buffer<std::uint32_t> left(kCount);
  const Buffer<std::uint32_t> right(kCount);
  const Buffer<std::uint32_t> sum(kCount);

  Capture capture(main);
  upload(x, in, main);
  fork.order(main, side);
  launch_affine(side, x, 17, 2, right);
  launch_affine(side, right, 19, 3, sum);
  launch_affine(main, x, 13, 1, left);
  join.order(side, main);
  launch_add(main, left, sum, sum);
  KIZU_CUDA_CHECK(cudaMemsetAsync(left.data(), 0, kCount * sizeof(std::uint32_t), main));
  download(out, sum, main);
  const Graph graph(capture);

  in.assign(window(words, 400));
  graph.launch(side);  // on any stream
  side.synchronize();
  return result("fork_join", {out.values()});
}

// A kernel's node gets other arguments and another grid; a launch that is under way keeps the old ones.
Result update_sample(const Words& words) {
  const Stream stream;
  const Buffer<std::uint32_t> x(window(words, 800));
  const Buffer<std::uint32_t> before(Words(kCount, 0));
  const Buffer<std::uint32_t> after(Words(kCount, 0));
  Capture capture(stream);
  launch_affine(stream, x, 2, 5, before);
  const Graph graph(capture);

  const cudaGraphNode_t node = graph.nodes(cudaGraphNodeTypeKernel).at(0);
  cudaKernelNodeParams parameters = {};
  KIZU_CUDA_CHECK(cudaGraphKernelNodeGetParams(node, &parameters));
  std::array<void*, 5> arguments = {};
  std::copy_n(parameters.kernelParams, arguments.size(), arguments.begin());
  std::uint32_t factor = *static_cast<std::uint32_t*>(arguments[1]) + 7;
  std::uint32_t* out = after.data();
  arguments[1] = &factor;
  arguments[4] = &out;
  parameters.kernelParams = arguments.data();
  parameters.gridDim.x = 2;  // of 3 blocks: the rest stays 0

  graph.launch(stream);
  KIZU_CUDA_CHECK(cudaGraphExecKernelNodeSetParams(graph.exec(), node, &parameters));
  graph.launch(stream);
  stream.synchronize();
  return result("update", {before.values(), after.values()});
}

// Two graphs at a time, each on its stream and on its data; launches of one graph follow one another on any stream.
Result two_graphs_sample(const Words& words) {
  const std::array<Stream, 2> streams;
  const Buffer<std::uint32_t> a(window(words, 1200));
  const Buffer<std::uint32_t> b(window(words, 1600));
  const Buffer<std::uint32_t> c(kCount);
  const Buffer<std::uint32_t> d(kCount);
  Capture on_first(streams[0]);
  launch_affine(streams[0], a, 3, 1, c);
  launch_affine(streams[0], c, 5, 2, a);
  const Graph first(on_first);
  Capture on_second(streams[1], cudaStreamCaptureModeRelaxed);
  launch_affine(streams[1], b, 7, 3, d);
  launch_affine(streams[1], d, 9, 4, b);
  const Graph second(on_second);
  for (int i = 0; i < 4; ++i) {
    first.launch(streams[i % 2]);
    second.launch(streams[1]);
  }
  for (const Stream& stream : streams) stream.synchronize();
  return result("two_graphs", {a.values(), b.values()});
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void measure_replay() {
  const Stream stream;
  const Event done;
  const Pinned<std::uint32_t> slot(kCount);
  const Pinned<std::uint32_t> staged[] = {Pinned<std::uint32_t>(kCount), Pinned<std::uint32_t>(kCount)};
  std::vector<std::unique_ptr<Buffer<std::uint32_t>>> buffers;
  for (int i = 0; i < 20; ++i) buffers.push_back(std::make_unique<Buffer<std::uint32_t>>(Words(kCount, 0)));
  const auto engine = [](void* data) { ++*static_cast<std::uint32_t*>(data); };
  Capture capture(stream);
  upload(*buffers[0], slot, stream);
  launch_affine(stream, *buffers[0], 3, 1, *buffers[1]);
  download(staged[0], *buffers[1], stream);
  KIZU_CUDA_CHECK(cudaLaunchHostFunc(stream, engine, staged[0].data()));
  upload(*buffers[2], staged[0], stream);
  launch_affine(stream, *buffers[2], 5, 7, *buffers[3]);
  launch_add(stream, *buffers[2], *buffers[3], *buffers[4]);
  download(staged[1], *buffers[4], stream);
  const Graph graph(capture);
  const int frames = 2000;
  const double start = seconds_now();
  for (int frame = 0; frame < frames; ++frame) {
    graph.launch(stream);
    KIZU_CUDA_CHECK(cudaEventRecord(done, stream));
    KIZU_CUDA_CHECK(cudaEventSynchronize(done));
  }
  std::printf("replay: %.0f frames a second\n", frames / (seconds_now() - start));
}

std::vector<Result> run_graph_samples(const Words& words) {
  return {replay_sample(words), fork_join_sample(words), update_sample(words), two_graphs_sample(words)};
}

}  // namespace planted
