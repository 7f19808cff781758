// Sample kernels whose results are known, and kernels with one bug each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace planted {

// The result of a sample, as bytes; the test knows the type.
struct Result {
  std::string name;
  std::vector<char> bytes;
};

// Every sample on inputs that are made from `words`, of which there must be kWords.
constexpr std::size_t kWords = 1 << 15;
std::vector<Result> run_samples(const std::vector<std::uint32_t>& words);
std::vector<Result> run_graph_samples(const std::vector<std::uint32_t>& words);

// Runs the bug of that name. False if there is none.
bool run_bug(const std::string& name);
bool run_graph_bug(const std::string& name);

// Threads a second of an element-wise kernel and of a block reduction.
void measure();
// Frames a second of a graph of three small kernels, four copies and a host function.
void measure_replay();

}  // namespace planted
