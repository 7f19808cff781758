#include "stream.h"

#include <algorithm>

#include "error.h"
#include "options.h"
#include "runtime.h"

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
  if (tasks_.empty() || busy_) return false;
  const auto& after = tasks_.front().after;
  return std::all_of(after.begin(), after.end(), [](const StreamPlace& place) { return place.reached(); });
}

void Stream::advance() {
  busy_ = true;
  const bool done = tasks_.front().step();
  busy_ = false;
  if (!done) return;
  tasks_.pop_front();
  ++done_;
}

Handles<cudaStream_t, Stream>& stream_handles() {
  static auto& result = *new Handles<cudaStream_t, Stream>;
  return result;
}

Handles<cudaEvent_t, Event>& event_handles() {
  static auto& result = *new Handles<cudaEvent_t, Event>;
  return result;
}

const StreamPointer& default_stream() { return streams().front(); }
const std::vector<StreamPointer>& all_streams() { return streams(); }

StreamPointer create_stream(bool blocking, int priority) {
  return streams().emplace_back(std::make_shared<Stream>(blocking, priority));
}

void destroy_stream(const StreamPointer& stream) {
  finish(end_of(stream));
  auto& all = streams();
  all.erase(std::find(all.begin(), all.end(), stream));
}

void enqueue_steps(const StreamPointer& stream, std::function<bool()> step, std::vector<StreamPlace> after) {
  if (stream == default_stream()) {
    for (const StreamPointer& other : streams())
      if (other != stream && other->blocking()) after.push_back(end_of(other));
  } else if (stream->blocking()) {
    after.push_back(end_of(default_stream()));
  }
  stream->push({std::move(step), std::move(after)});
}

void enqueue(const StreamPointer& stream, std::function<void()> work, std::vector<StreamPlace> after) {
  const auto only_step = [work = std::move(work)] {
    work();
    return true;
  };
  enqueue_steps(stream, only_step, std::move(after));
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
    if (!advance_any() && !wait_for_host_function()) fail("the streams wait for each other");
}

void finish_all() {
  std::vector<StreamPlace> ends;
  for (const StreamPointer& stream : streams()) ends.push_back(end_of(stream));
  for (const StreamPlace& end : ends) finish(end);
}

}  // namespace cuda_on_cpu
