// The samples as a shared library, for callers on several threads of one process.

#include <cstdint>
#include <exception>

#include "planted.h"

// A digest of all results, or 0 if something failed.
extern "C" __attribute__((visibility("default"))) std::uint64_t planted_digest(const std::uint32_t* words) {
  try {
    std::uint64_t digest = 0xcbf29ce484222325;
    for (const auto run : {planted::run_samples, planted::run_graph_samples})
      for (const planted::Result& result : run({words, words + planted::kWords}))
        for (const char byte : result.bytes) digest = (digest ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
    return digest;
  } catch (const std::exception&) {
    return 0;
  }
}
