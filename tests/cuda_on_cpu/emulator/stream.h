// Streams and events. Work that is put on a stream waits there until somebody synchronises; then the streams advance in
// an order drawn at random, as far as their events allow.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "capture.h"
#include "handles.h"

namespace cuda_on_cpu {

class Stream;

// A place in a stream: reached when as many tasks of it are done.
struct StreamPlace {
  std::shared_ptr<const Stream> stream;
  std::uint64_t tasks = 0;

  bool reached() const;
};

struct Task {
  std::function<bool()> step;  // does a part of the work; true if that was the last
  std::vector<StreamPlace> after;
};

class Stream {
 public:
  Stream(bool blocking, int priority) : blocking_(blocking), priority_(priority) {}

  bool idle() const { return tasks_.empty(); }
  // Whether the legacy default stream and this one wait for each other.
  bool blocking() const { return blocking_; }
  int priority() const { return priority_; }
  std::uint64_t queued() const { return done_ + tasks_.size(); }
  std::uint64_t done() const { return done_; }

  void push(Task task) { tasks_.push_back(std::move(task)); }
  bool can_advance() const;
  void advance();

  CapturedPlace captured;  // while it is capturing: where the next node goes

 private:
  std::deque<Task> tasks_;
  std::uint64_t done_ = 0;
  bool busy_ = false;  // within a step, which lets the lock go while a host function runs
  bool blocking_;
  int priority_;
};

struct Event {
  bool reached() const { return place.reached(); }

  bool timed = true;
  StreamPlace place;
  CapturedPlace captured;  // if it was last recorded in a stream that was capturing
  // When the stream came to the event; shared with the task that sets it.
  std::shared_ptr<double> milliseconds = std::make_shared<double>(0);
};

using StreamPointer = std::shared_ptr<Stream>;
using EventPointer = std::shared_ptr<Event>;

Handles<cudaStream_t, Stream>& stream_handles();  // without the default stream
Handles<cudaEvent_t, Event>& event_handles();

// The legacy default stream is always there. All streams: that one first.
const StreamPointer& default_stream();
const std::vector<StreamPointer>& all_streams();
StreamPointer create_stream(bool blocking, int priority);
// Finishes its work and forgets it.
void destroy_stream(const StreamPointer& stream);

// Adds work to a stream, after what the default stream's rules ask for.
void enqueue_steps(const StreamPointer& stream, std::function<bool()> step, std::vector<StreamPlace> after = {});
void enqueue(const StreamPointer& stream, std::function<void()> work, std::vector<StreamPlace> after = {});
// The place behind all that was put on the stream so far.
StreamPlace end_of(const StreamPointer& stream);

// Advances one stream that can, picked at random. False if none can.
bool advance_any();
// Advances streams until the place is reached.
void finish(const StreamPlace& place);
void finish_all();

}  // namespace cuda_on_cpu
