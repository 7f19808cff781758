#include "case_file.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace kizu::tests {

namespace {

std::runtime_error wrong(const std::string& message) { return std::runtime_error(message); }

std::string line_of(std::istream& file) {
  std::string line;
  if (!std::getline(file, line) || file.eof()) throw wrong("the file ends before its last line");
  return line;
}

// "array <name> <type> <shape...>", then the bytes and a new line.
void read_array(std::istream& file, std::istringstream& line, Case& into) {
  std::string name;
  Array array;
  line >> name >> array.type;
  std::size_t size = array.item_size();
  for (std::size_t side; line >> side; size *= side) array.shape.push_back(side);
  if (size > std::size_t{1} << 28) throw wrong(into.name + ": array " + name + " is too large");
  array.bytes.resize(size);
  file.read(reinterpret_cast<char*>(array.bytes.data()), static_cast<std::streamsize>(size));
  if (!file || file.get() != '\n') throw wrong(into.name + ": array " + name + " is cut off or longer than its shape");
  into.arrays[name] = std::move(array);
}

Case read_case(std::istream& file, const std::string& name) {
  Case read{name, {}, {}};
  for (std::string text = line_of(file); text != "end"; text = line_of(file)) {
    std::istringstream line(text);
    std::string key, value;
    line >> key;
    if (key == "array") {
      read_array(file, line, read);
    } else {
      std::getline(line >> std::ws, value);
      read.values[key] = value;
    }
  }
  return read;
}

}  // namespace

std::size_t Array::item_size() const {
  static const std::map<std::string, std::size_t> sizes = {{"uint8", 1},   {"uint16", 2},  {"int32", 4},
                                                           {"float16", 2}, {"float32", 4}, {"float64", 8}};
  const auto found = sizes.find(type);
  if (found == sizes.end()) throw wrong("'" + type + "' is not a type that cases have");
  return found->second;
}

const std::string& Case::text(const std::string& key) const {
  const auto found = values.find(key);
  if (found == values.end()) throw wrong(name + " has no value '" + key + "'");
  return found->second;
}

std::vector<double> Case::numbers(const std::string& key) const {
  std::istringstream line(text(key));
  std::vector<double> read;
  for (std::string word; line >> word;) read.push_back(std::stod(word));
  return read;
}

std::ptrdiff_t Case::integer(const std::string& key) const { return std::stoll(text(key)); }

const Array* Case::find(const std::string& key) const {
  const auto found = arrays.find(key);
  return found == arrays.end() ? nullptr : &found->second;
}

const Array& Case::array(const std::string& key) const {
  const Array* found = find(key);
  if (!found) throw wrong(name + " has no array '" + key + "'");
  return *found;
}

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw wrong("cannot be opened");
  if (line_of(file) != "kizu cases 1") throw wrong("the first line is not 'kizu cases 1'");
  std::vector<Case> cases;
  for (;;) {
    std::istringstream line(line_of(file));
    std::string key, value;
    line >> key >> value;
    if (key == "case") {
      cases.push_back(read_case(file, value));
    } else if (key == "cases" && value == std::to_string(cases.size())) {
      return cases;
    } else {
      throw wrong("'" + key + " " + value + "' is neither a case nor the number of those before");
    }
  }
}

}  // namespace kizu::tests
