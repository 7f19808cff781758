// Streams and events. Work that is put on a stream waits there until somebody synchronises; then the streams advance in
// an order drawn at random, as far as their events allow.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace cuda_on_cpu {

class Stream;

// A place in a stream: reached when as many tasks of it are done.
struct StreamPlace {
  std::shared_ptr<const Stream> stream;
  std::uint64_t tasks = 0;

  bool reached() const;
};

struct Task {
  std::function<void()> work;
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

 private:
  std::deque<Task> tasks_;
  std::uint64_t done_ = 0;
  bool blocking_;
  int priority_;
};

class Event {
 public:
  void record(StreamPlace place) { place_ = std::move(place); }
  const StreamPlace& place() const { return place_; }
  bool reached() const { return place_.reached(); }

  // When the stream came to the event; shared with the task that sets it.
  std::shared_ptr<double> milliseconds = std::make_shared<double>(0);

 private:
  StreamPlace place_;
};

using StreamPointer = std::shared_ptr<Stream>;

// The legacy default stream is always there.
const StreamPointer& default_stream();
StreamPointer create_stream(bool blocking, int priority);
// Finishes its work and forgets it.
void destroy_stream(const StreamPointer& stream);

// Adds work to a stream, after what the default stream's rules ask for.
void enqueue(const StreamPointer& stream, std::function<void()> work, std::vector<StreamPlace> after = {});
// The place behind all that was put on the stream so far.
StreamPlace end_of(const StreamPointer& stream);

// Advances one stream that can, picked at random. False if none can.
bool advance_any();
// Advances streams until the place is reached.
void finish(const StreamPlace& place);
void finish_all();

}  // namespace cuda_on_cpu
