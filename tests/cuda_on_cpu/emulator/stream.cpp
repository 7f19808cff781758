#include "stream.h"

#include <algorithm>

#include "error.h"
#include "options.h"

namespace cuda_on_cpu {

namespace {

// The default stream first. Never destroyed.
std::vector<StreamPointer>& streams() {
  static auto& result = *new std::vector<StreamPointer>{std::make_shared<Stream>(true, 0)};
  return result;
}

}  // namespace

bool StreamPlace::reached() const { return !stream || stream->done() >= tasks; }

bool Stream::can_advance() const {
  if (tasks_.empty()) return false;
  const auto& after = tasks_.front().after;
  return std::all_of(after.begin(), after.end(), [](const StreamPlace& place) { return place.reached(); });
}

void Stream::advance() {
  const auto work = std::move(tasks_.front().work);
  work();
  tasks_.pop_front();
  ++done_;
}

const StreamPointer& default_stream() { return streams().front(); }

StreamPointer create_stream(bool blocking, int priority) {
  return streams().emplace_back(std::make_shared<Stream>(blocking, priority));
}

void destroy_stream(const StreamPointer& stream) {
  finish(end_of(stream));
  auto& all = streams();
  all.erase(std::find(all.begin(), all.end(), stream));
}

void enqueue(const StreamPointer& stream, std::function<void()> work, std::vector<StreamPlace> after) {
  if (stream == default_stream()) {
    for (const StreamPointer& other : streams())
      if (other != stream && other->blocking()) after.push_back(end_of(other));
  } else if (stream->blocking()) {
    after.push_back(end_of(default_stream()));
  }
  stream->push({std::move(work), std::move(after)});
}

StreamPlace end_of(const StreamPointer& stream) { return {stream, stream->queued()}; }

bool advance_any() {
  std::vector<StreamPointer> able;
  for (const StreamPointer& stream : streams())
    if (stream->can_advance()) able.push_back(stream);
  if (able.empty()) return false;
  able[random_below(able.size())]->advance();
  return true;
}

void finish(const StreamPlace& place) {
  while (!place.reached())
    if (!advance_any()) fail("the streams wait for each other");
}

void finish_all() {
  while (advance_any()) {
  }
}

}  // namespace cuda_on_cpu
