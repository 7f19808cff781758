// Runs every case of a file on a device and compares all bytes with what the case expects.
//
//   run_cases FILE [--device cpu|cuda] [--lanes 1|2] [--threads N] [--only TEXT] [--seed N]   or   run_cases --levels
//
// Two lanes take every case in an order of their own: a pool of one thread and one of N, or two CUDA streams. A lane
// keeps its work space over all cases, and the call of one lane is still under way when the other's begins. With one
// lane, which is the one whose memory is aligned, each case runs once: a profile then counts nothing else. Exits with 0
// if all is as expected, 1 if not, 2 for arguments or a file that cannot be used.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "case_file.h"
#include "case_ops.h"
#include "core/simd.h"
#include "lane.h"

namespace kizu::tests {

namespace {

constexpr const char* kUsage =
    "usage: run_cases FILE [--device cpu|cuda] [--lanes 1|2] [--threads N] [--only TEXT] [--seed N]\n"
    "       run_cases --levels\n";

struct Options {
  std::string file, device = "cpu", only;
  int lanes = 2, threads = 2;
  unsigned seed = 1;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  const auto number = [](const std::string& key, const std::string& value) {
    if (value.empty() || value.size() > 6 || value.find_first_not_of("0123456789") != std::string::npos)
      throw std::runtime_error(key + " is '" + value + "', but must be a whole number");
    return std::stoi(value);
  };
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& key = words[i];
    if (!key.starts_with("--")) {
      options.file = key;
      continue;
    }
    if (++i == words.size()) throw std::runtime_error(key + " needs a value");
    const std::string& value = words[i];
    if (key == "--device" && (value == "cpu" || value == "cuda"))
      options.device = value;
    else if (key == "--lanes" && (value == "1" || value == "2"))
      options.lanes = number(key, value);
    else if (key == "--threads")
      options.threads = number(key, value);
    else if (key == "--only")
      options.only = value;
    else if (key == "--seed")
      options.seed = static_cast<unsigned>(number(key, value));
    else
      throw std::runtime_error("'" + key + " " + value + "' is not understood");
  }
  if (options.file.empty()) throw std::runtime_error("the file of cases is missing");
  return options;
}

// The bits of one element; all NaNs have the same.
std::uint32_t bits(const std::string& type, std::size_t size, const std::byte* element) {
  std::uint32_t value = 0;
  std::memcpy(&value, element, size);
  if (type == "float32" && (value & 0x7fffffff) > 0x7f800000) return 0x7fc00000;
  if (type == "float16" && (value & 0x7fff) > 0x7c00) return 0x7e00;
  return value;
}

std::string shown(const std::string& type, std::uint32_t bits) {
  char text[64];
  float value;
  std::memcpy(&value, &bits, sizeof value);
  if (type == "float32")
    std::snprintf(text, sizeof text, "%.9g (0x%08x)", static_cast<double>(value), bits);
  else if (type == "float16")
    std::snprintf(text, sizeof text, "0x%04x", bits);
  else
    std::snprintf(text, sizeof text, "%u", bits);
  return text;
}

// "at [1, 0, 4]", counted in the array's shape.
std::string place(const Array& array, std::size_t index) {
  std::string text = "]";
  for (std::size_t i = array.shape.size(); i-- > 0; index /= array.shape[i])
    text = (i ? ", " : "[") + std::to_string(index % array.shape[i]) + text;
  return text;
}

// What is wrong with the output, or nothing.
std::string difference(const Array& expected, const std::vector<std::byte>& got) {
  const std::size_t size = expected.item_size();
  std::size_t wrong = 0;
  std::string first;
  for (std::size_t i = 0; i < expected.items(); ++i) {
    const std::uint32_t want = bits(expected.type, size, expected.bytes.data() + i * size);
    const std::uint32_t have = bits(expected.type, size, got.data() + i * size);
    if (want == have) continue;
    if (!wrong++)
      first = "at " + place(expected, i) + " got " + shown(expected.type, have) + ", expected " +
              shown(expected.type, want);
  }
  if (!wrong) return "";
  return std::to_string(wrong) + " of " + std::to_string(expected.items()) + " values differ, first " + first;
}

class Run {
 public:
  explicit Run(const std::string& lane) : lane_(lane) {}

  void finish(std::optional<Call>& call, Lane& lane) {
    if (!call) return;
    try {
      for (const auto& [expected, memory] : call->outputs) {
        const std::string wrong = difference(*expected, lane.result(memory));
        if (!wrong.empty()) fail(*call->of, wrong);
      }
    } catch (const std::exception& error) {
      fail(*call->of, error.what());
    }
    call.reset();
  }

  void start(const Case& from, std::optional<Call>& call, Lane& lane) {
    try {
      call = tests::start(from, lane);
    } catch (const std::exception& error) {
      fail(from, error.what());
    }
  }

  std::size_t failures() const { return failed_.size(); }

 private:
  void fail(const Case& from, const std::string& what) {
    failed_.insert(from.name);
    std::printf("%s: %s: %s\n", from.name.c_str(), lane_.c_str(), what.c_str());
  }

  std::string lane_;
  std::set<std::string> failed_;
};

int run(const Options& options, const std::vector<Case>& cases) {
  const bool cuda = options.device == "cuda";
  // The second lane's memory begins one element after an aligned address.
  const std::array<std::unique_ptr<Lane>, 2> lanes = {cuda ? cuda_lane(0) : cpu_lane(0, options.threads),
                                                      cuda ? cuda_lane(1) : cpu_lane(1, 1)};
  std::vector<std::size_t> order(2 * cases.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(options.seed));

  Run run(cuda ? "cuda" : std::string("cpu ") + simd::name(simd::chosen()));
  std::array<std::optional<Call>, 2> calls;
  for (const std::size_t i : order) {
    if (i % 2 >= static_cast<std::size_t>(options.lanes)) continue;
    Lane& lane = *lanes[i % 2];
    run.finish(calls[i % 2], lane);
    run.start(cases[i / 2], calls[i % 2], lane);
  }
  for (std::size_t i = 0; i < 2; ++i) run.finish(calls[i], *lanes[i]);
  std::printf("%zu cases, %zu failures\n", cases.size(), run.failures());
  return run.failures() ? 1 : 0;
}

int main(const std::vector<std::string>& words) {
  if (words == std::vector<std::string>{"--levels"}) {
    for (const simd::Level level : simd::available()) std::puts(simd::name(level));
    return 0;
  }
  Options options;
  try {
    options = parse(words);
    simd::chosen();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n%s", error.what(), kUsage);
    return 2;
  }
  std::vector<Case> cases;
  try {
    cases = read_cases(options.file);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", options.file.c_str(), error.what());
    return 2;
  }
  std::erase_if(cases, [&](const Case& each) { return each.name.find(options.only) == std::string::npos; });
  if (cases.empty()) {
    std::fprintf(stderr, "%s: no case is named *%s*\n", options.file.c_str(), options.only.c_str());
    return 2;
  }
  try {
    return run(options, cases);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

}  // namespace

}  // namespace kizu::tests

int main(int argc, char** argv) { return kizu::tests::main({argv + 1, argv + argc}); }
