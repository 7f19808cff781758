// What programs know by handle. A handle is no address and is never given twice, so that a stale one is recognised.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

namespace cuda_on_cpu {

template <typename Handle, typename T>
class Handles {
 public:
  Handle add(std::shared_ptr<T> object) {
    static std::uintptr_t last = 0xf000;  // above the handles that CUDA gives a meaning of its own
    last += 0x10;
    const auto handle = reinterpret_cast<Handle>(last);
    objects_.emplace(handle, std::move(object));
    return handle;
  }

  // nullptr if there is no such thing, or no longer.
  std::shared_ptr<T> find(Handle handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }

  void remove(Handle handle) { objects_.erase(handle); }
  std::size_t size() const { return objects_.size(); }

 private:
  std::map<Handle, std::shared_ptr<T>> objects_;
};

}  // namespace cuda_on_cpu
