// planted samples WORDS OUT   runs the samples on a file of 32-bit words; OUT gets name, size and bytes of each result
// planted bug NAME            runs a kernel with a bug
// planted measure             prints threads and frames a second

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <string>

#include "planted.h"

namespace {

int samples(const char* words_path, const char* out_path) {
  std::vector<std::uint32_t> words(planted::kWords);
  std::ifstream in(words_path, std::ios::binary);
  if (!in.read(reinterpret_cast<char*>(words.data()), static_cast<std::streamsize>(words.size() * sizeof words[0]))) {
    std::fprintf(stderr, "%s does not hold %zu words\n", words_path, words.size());
    return 2;
  }
  std::ofstream out(out_path, std::ios::binary);
  for (const auto run : {planted::run_samples, planted::run_graph_samples}) {
    for (const planted::Result& result : run(words)) {
      out << result.name << '\n' << result.bytes.size() << '\n';
      out.write(result.bytes.data(), static_cast<std::streamsize>(result.bytes.size()));
    }
  }
  return out ? 0 : 2;
}

int run(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  if (command == "samples" && count == 4) return samples(arguments[2], arguments[3]);
  if (command == "bug" && count == 3)
    return planted::run_bug(arguments[2]) || planted::run_graph_bug(arguments[2]) ? 0 : 2;
  if (command == "measure" && count == 2) return planted::measure(), planted::measure_replay(), 0;
  std::fprintf(stderr, "usage: planted samples WORDS OUT | bug NAME | measure\n");
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
