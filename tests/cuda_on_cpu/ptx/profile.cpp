// The counters of PTX_PROFILE. What a thread does is collected while its block runs; when the block ends, accesses are
// put together to warp requests: the n-th execution of an instruction by each lane of a warp is one request.
//
// Written as JSON to the file that CUDA_ON_CPU_PROFILE names, when the process ends.

#include <cxxabi.h>

#include <algorithm>
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "block.h"
#include "error.h"
#include "execution.h"
#include "memory.h"
#include "registry.h"

namespace ptx {

namespace {

constexpr std::uint64_t kSectorBytes = 32;
constexpr std::size_t kBanks = 32;
constexpr std::size_t kBankBytes = 4;

// One thread's access.
struct Access {
  std::uint64_t address;
  int instruction;
  unsigned thread;
  unsigned visit;  // how often this thread came to this instruction before
};

// What is known of an instruction that accesses memory.
struct Traffic {
  bool shared = false;
  AccessKind kind = AccessKind::read;
  std::size_t bytes_per_thread = 0;
  std::uint64_t accesses = 0;  // by threads
  std::uint64_t requests = 0;  // by warps
  std::uint64_t sectors = 0;   // of global memory, summed over requests
  std::uint64_t passes = 0;    // over the banks of shared memory, summed over requests
};

// Sectors of one launch, a bit each.
class SectorSet {
 public:
  void insert(std::uint64_t sector) { pages_[sector / kPage].set(sector % kPage); }
  std::uint64_t size() const {
    std::uint64_t count = 0;
    for (const auto& [page, bits] : pages_) count += bits.count();
    return count;
  }
  void clear() { pages_.clear(); }

 private:
  static constexpr std::size_t kPage = 4096;
  std::unordered_map<std::uint64_t, std::bitset<kPage>> pages_;
};

struct KernelProfile {
  std::uint64_t launches = 0;
  std::uint64_t blocks = 0;
  std::uint64_t threads = 0;
  std::uint64_t shared_bytes = 0;       // of a block, in the launch that had most
  std::vector<std::uint64_t> executed;  // by instruction
  std::map<int, Traffic> traffic;       // by instruction
  std::uint64_t sectors_read_by_blocks = 0;
  std::uint64_t sectors_written_by_blocks = 0;
  std::uint64_t sectors_read = 0;  // each once a launch
  std::uint64_t sectors_written = 0;
};

// Everything of the process. Never destroyed: it is written at the very end.
struct Profile {
  std::map<const KernelCode*, KernelProfile> kernels;
  // Of the block that runs.
  std::vector<Access> accesses;
  std::unordered_map<std::uint64_t, unsigned> visits;  // by instruction and thread
  // Of the launch.
  std::uint64_t blocks = 0;
  std::uint64_t threads = 0;
  std::uint64_t shared_bytes = 0;
  SectorSet read;
  SectorSet written;
};

Profile& profile() {
  static auto& result = *new Profile;
  return result;
}

KernelProfile& profile_of(const KernelCode& code) {
  // Mostly that of the call before.
  static const KernelCode* recent_code = nullptr;
  static KernelProfile* recent = nullptr;
  if (recent_code != &code) {
    recent_code = &code;
    recent = &profile().kernels[&code];
    recent->executed.resize(code.places.size());
  }
  return *recent;
}

// Lanes of a request, in order of lane.
using Request = std::vector<std::uint64_t>;

std::uint64_t sectors_of(const Request& addresses, std::size_t bytes) {
  std::unordered_set<std::uint64_t> sectors;
  for (const std::uint64_t address : addresses)
    for (std::uint64_t s = address / kSectorBytes; s <= (address + bytes - 1) / kSectorBytes; ++s) sectors.insert(s);
  return sectors.size();
}

// Words of a bank come one after another; different banks come together. Wide accesses are served in parts of 128
// bytes.
std::uint64_t bank_passes_of(const Request& addresses, std::size_t bytes) {
  const std::size_t words = std::max<std::size_t>(1, bytes / kBankBytes);
  const std::size_t lanes_a_part = cuda_on_cpu::kWarpSize / words;
  std::uint64_t passes = 0;
  for (std::size_t first = 0; first < addresses.size(); first += lanes_a_part) {
    std::unordered_set<std::uint64_t> banks[kBanks];
    std::size_t most = 0;
    for (std::size_t i = first; i < std::min(addresses.size(), first + lanes_a_part); ++i) {
      for (std::size_t w = 0; w < words; ++w) {
        const std::uint64_t word = addresses[i] / kBankBytes + w;
        auto& bank = banks[word % kBanks];
        bank.insert(word);
        most = std::max(most, bank.size());
      }
    }
    passes += most;
  }
  return passes;
}

void finish_request(Traffic& traffic, const Request& addresses) {
  ++traffic.requests;
  traffic.accesses += addresses.size();
  if (traffic.shared)
    traffic.passes += bank_passes_of(addresses, traffic.bytes_per_thread);
  else
    traffic.sectors += sectors_of(addresses, traffic.bytes_per_thread);
}

// The block's own sectors, and the launch's.
void count_unique_sectors(KernelProfile& kernel) {
  std::unordered_set<std::uint64_t> read;
  std::unordered_set<std::uint64_t> written;
  for (const Access& access : profile().accesses) {
    const Traffic& traffic = kernel.traffic[access.instruction];
    if (traffic.shared) continue;
    const bool reads = traffic.kind == AccessKind::read;
    const std::uint64_t last = (access.address + traffic.bytes_per_thread - 1) / kSectorBytes;
    for (std::uint64_t s = access.address / kSectorBytes; s <= last; ++s) (reads ? read : written).insert(s);
  }
  kernel.sectors_read_by_blocks += read.size();
  kernel.sectors_written_by_blocks += written.size();
  for (const std::uint64_t s : read) profile().read.insert(s);
  for (const std::uint64_t s : written) profile().written.insert(s);
}

void block_ended() {
  auto& accesses = profile().accesses;
  if (accesses.empty()) return;
  KernelProfile& kernel = profile_of(*running_kernel());
  count_unique_sectors(kernel);
  const auto request = [](const Access& a) {
    return std::tuple(a.instruction, a.thread / cuda_on_cpu::kWarpSize, a.visit);
  };
  std::sort(accesses.begin(), accesses.end(), [&](const Access& a, const Access& b) {
    return std::tuple_cat(request(a), std::tuple(a.thread)) < std::tuple_cat(request(b), std::tuple(b.thread));
  });
  Request addresses;
  for (std::size_t i = 0; i < accesses.size(); ++i) {
    addresses.push_back(accesses[i].address);
    if (i + 1 < accesses.size() && request(accesses[i]) == request(accesses[i + 1])) continue;
    finish_request(kernel.traffic[accesses[i].instruction], addresses);
    addresses.clear();
  }
  accesses.clear();
  profile().visits.clear();
}

// JSON

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

std::string demangled(const char* name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

const char* name_of(AccessKind kind) {
  return kind == AccessKind::read ? "read" : kind == AccessKind::write ? "write" : "atomic";
}

unsigned long long number(std::uint64_t value) { return value; }

std::string place_fields(const Place& place) {
  return "\"file\": " + quoted(place.file) + ", \"line\": " + std::to_string(place.line);
}

void write_traffic(std::FILE* out, const KernelCode& code, const KernelProfile& kernel) {
  const char* separator = "";
  for (const auto& [instruction, t] : kernel.traffic) {
    const Place& place = code.places[static_cast<std::size_t>(instruction)];
    std::fprintf(out,
                 "%s\n        {%s, \"space\": \"%s\", \"kind\": \"%s\", \"bytes_per_thread\": %zu, "
                 "\"thread_accesses\": %llu, \"bytes_requested\": %llu, \"requests\": %llu, \"%s\": %llu}",
                 separator, place_fields(place).c_str(), t.shared ? "shared" : "global", name_of(t.kind),
                 t.bytes_per_thread, number(t.accesses), number(t.accesses * t.bytes_per_thread), number(t.requests),
                 t.shared ? "bank_passes" : "sectors", number(t.shared ? t.passes : t.sectors));
    separator = ",";
  }
}

void write_lines(std::FILE* out, const KernelCode& code, const KernelProfile& kernel) {
  std::map<std::pair<std::string, int>, std::uint64_t> lines;
  for (std::size_t i = 0; i < kernel.executed.size(); ++i)
    lines[{code.places[i].file, code.places[i].line}] += kernel.executed[i];
  const char* separator = "";
  for (const auto& [place, executed] : lines) {
    if (executed == 0) continue;
    std::fprintf(out, "%s\n        {%s, \"thread_instructions\": %llu}", separator,
                 place_fields({place.first.c_str(), place.second}).c_str(), number(executed));
    separator = ",";
  }
}

void write_kernel(std::FILE* out, const KernelCode& code, const KernelProfile& kernel) {
  std::uint64_t instructions = 0;
  for (const std::uint64_t executed : kernel.executed) instructions += executed;
  std::uint64_t requested[2] = {};  // read, written
  for (const auto& [instruction, t] : kernel.traffic)
    if (!t.shared) requested[t.kind != AccessKind::read] += t.accesses * t.bytes_per_thread;
  const auto bytes = [](std::uint64_t sectors) { return number(sectors * kSectorBytes); };

  std::fprintf(out, "    {\n      \"name\": %s,\n      \"mangled_name\": %s,\n", quoted(demangled(code.name)).c_str(),
               quoted(code.name).c_str());
  std::fprintf(out, "      \"launches\": %llu,\n      \"blocks\": %llu,\n      \"threads\": %llu,\n",
               number(kernel.launches), number(kernel.blocks), number(kernel.threads));
  std::fprintf(out, "      \"shared_bytes\": %llu,\n", number(kernel.shared_bytes));
  std::fprintf(out, "      \"thread_instructions\": %llu,\n", number(instructions));
  std::fprintf(out, "      \"bytes_read_requested\": %llu,\n      \"bytes_written_requested\": %llu,\n",
               number(requested[0]), number(requested[1]));
  std::fprintf(out, "      \"bytes_read_by_blocks\": %llu,\n      \"bytes_written_by_blocks\": %llu,\n",
               bytes(kernel.sectors_read_by_blocks), bytes(kernel.sectors_written_by_blocks));
  std::fprintf(out, "      \"bytes_read_once\": %llu,\n      \"bytes_written_once\": %llu,\n",
               bytes(kernel.sectors_read), bytes(kernel.sectors_written));
  std::fprintf(out, "      \"bytes_moved\": %llu,\n", bytes(kernel.sectors_read_by_blocks + kernel.sectors_written));
  std::fprintf(out, "      \"accesses\": [");
  write_traffic(out, code, kernel);
  std::fprintf(out, "\n      ],\n      \"lines\": [");
  write_lines(out, code, kernel);
  std::fprintf(out, "\n      ]\n    }");
}

void write_profile() {
  const char* path = std::getenv("CUDA_ON_CPU_PROFILE");
  if (!path || !*path) return;
  std::FILE* out = std::fopen(path, "w");
  if (!out) cuda_on_cpu::fail("CUDA_ON_CPU_PROFILE: %s cannot be written", path);
  std::fprintf(out, "{\n  \"kernels\": [\n");
  const char* separator = "";
  std::map<std::string, const KernelCode*> by_name;
  for (const auto& [code, kernel] : profile().kernels) by_name[code->name] = code;
  for (const auto& [name, code] : by_name) {
    std::fprintf(out, "%s", separator);
    write_kernel(out, *code, profile().kernels[code]);
    separator = ",\n";
  }
  std::fprintf(out, "\n  ]\n}\n");
  std::fclose(out);
}

void grid_begins(const cuda_on_cpu::Grid& grid) {
  static const bool registered = std::atexit(write_profile) == 0;
  (void)registered;
  profile().blocks = std::uint64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  profile().threads = profile().blocks * grid.threads.x * grid.threads.y * grid.threads.z;
  profile().shared_bytes = grid.dynamic_shared_bytes;
}

void grid_ended() {
  KernelProfile& kernel = profile_of(*running_kernel());
  ++kernel.launches;
  kernel.blocks += profile().blocks;
  kernel.threads += profile().threads;
  kernel.shared_bytes = std::max(kernel.shared_bytes, profile().shared_bytes);
  kernel.sectors_read += profile().read.size();
  kernel.sectors_written += profile().written.size();
  profile().read.clear();
  profile().written.clear();
}

// This file is linked only into programs whose kernels count.
const bool observing = [] {
  cuda_on_cpu::observe_grids({grid_begins, block_ended, grid_ended});
  return true;
}();

// A generic address tells its space only when it is used.
bool is_shared(const char* address) {
  const char* shared = static_cast<const char*>(cuda_on_cpu::dynamic_shared());
  return address >= shared && address < shared + cuda_on_cpu::dynamic_shared_bytes();
}

}  // namespace

void count_instruction(const KernelCode& code, int instruction) {
  ++profile_of(code).executed[static_cast<std::size_t>(instruction)];
}

void count_access(const KernelCode& code, int instruction, Space space, AccessKind kind, const void* address,
                  std::size_t bytes) {
  const bool shared = space == Space::shared || is_shared(static_cast<const char*>(address));
  if (!shared && !cuda_on_cpu::find_allocation(address)) return;  // a variable of the module, or a thread's own
  Traffic& traffic = profile_of(code).traffic[instruction];
  traffic.shared = shared;
  traffic.kind = kind;
  traffic.bytes_per_thread = bytes;
  const unsigned thread = cuda_on_cpu::thread_number();
  const unsigned visit = profile().visits[static_cast<std::uint64_t>(instruction) << 32 | thread]++;
  profile().accesses.push_back({reinterpret_cast<std::uint64_t>(address), instruction, thread, visit});
}

}  // namespace ptx
