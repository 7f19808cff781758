#include "lane.h"

#include <algorithm>
#include <stdexcept>

namespace kizu::tests {

namespace {

constexpr std::size_t kGuard = 256;  // bytes before and after an output; keeps the alignment

}  // namespace

Memory Lane::input(std::span<const std::byte> bytes, std::size_t item_size) {
  const std::size_t shift = shift_ * item_size;
  std::vector<std::byte> content(shift, kPoison);
  content.insert(content.end(), bytes.begin(), bytes.end());
  std::shared_ptr<std::byte> owner = allocate(content);
  return {owner, owner.get() + shift, bytes.size()};
}

Memory Lane::output(std::size_t size, std::size_t item_size) {
  const std::size_t before = kGuard + shift_ * item_size;
  std::shared_ptr<std::byte> owner = allocate(std::vector<std::byte>(before + size + kGuard, kPoison));
  return {owner, owner.get() + before, size};
}

std::vector<std::byte> Lane::result(const Memory& output) {
  const std::size_t before = output.data - output.owner.get();
  std::vector<std::byte> all(before + output.size + kGuard);
  read(output.owner.get(), all);
  const auto first = all.begin() + before, last = first + output.size;
  const auto poison = [](std::byte byte) { return byte == kPoison; };
  if (!std::all_of(all.begin(), first, poison)) throw std::runtime_error("memory before the output was written to");
  if (!std::all_of(last, all.end(), poison)) throw std::runtime_error("memory after the output was written to");
  return {first, last};
}

PreparePlan& Lane::plan(const std::string& key, const std::function<PreparePlan()>& make) {
  const auto found = prepare_plans_.find(key);
  return found != prepare_plans_.end() ? found->second : prepare_plans_.emplace(key, make()).first->second;
}

SmoothMapPlan& Lane::plan(const std::string& key, const std::function<SmoothMapPlan()>& make) {
  const auto found = smooth_map_plans_.find(key);
  return found != smooth_map_plans_.end() ? found->second : smooth_map_plans_.emplace(key, make()).first->second;
}

}  // namespace kizu::tests
