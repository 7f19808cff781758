// Reads the file of cases that cases.py writes; its docstring has the format.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace kizu::tests {

struct Array {
  std::string type;  // NumPy's name: uint8, float32, ...
  std::vector<std::size_t> shape;
  std::vector<std::byte> bytes;

  std::size_t item_size() const;
  std::size_t items() const { return bytes.size() / item_size(); }
  // The elements as another type of the same size.
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
};

// Asking for a key or an array that is not there, or is not what was asked for, throws std::runtime_error.
class Case {
 public:
  std::string name;  // operation/what
  std::map<std::string, std::string> values;
  std::map<std::string, Array> arrays;

  std::string op() const { return name.substr(0, name.find('/')); }
  const std::string& text(const std::string& key) const;
  std::ptrdiff_t integer(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;  // separated by blanks
  const Array& array(const std::string& key) const;
  const Array* find(const std::string& key) const;
};

// Throws std::runtime_error if the file cannot be read or is not complete.
std::vector<Case> read_cases(const std::string& path);

}  // namespace kizu::tests
