/// @file
/// A call's messages as a range, and the law of a stream as a client reads it.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "inferwire/error.h"
#include "inferwire/gather.h"
#include "inferwire/v1/inference.grpc.pb.h"
#include "inferwire/v1/models.grpc.pb.h"

namespace inferwire {

/// Where a stream is. All but open are final.
enum class State { open, completed, failed, cancelled };

/// The name of a state, such as "open".
std::string_view name_of(State state);

/// What the law of the stream says of an event of this type. Here: of a watch, which has no last event.
template <class E>
struct Law {
  static constexpr bool has_terminal = false;
  static bool is_terminal(const E&) { return false; }
  static bool is_known(const E&) { return true; }
};

/// An answer ends with its completion.
template <>
struct Law<v1::StreamCompleteResponse> {
  static constexpr bool has_terminal = true;
  static bool is_terminal(const v1::StreamCompleteResponse& event) { return event.has_completion(); }
  static bool is_known(const v1::StreamCompleteResponse& event) {
    return event.event_case() != v1::StreamCompleteResponse::EVENT_NOT_SET;
  }
};

/// A load ends with `loaded`.
template <>
struct Law<v1::StreamLoadResponse> {
  static constexpr bool has_terminal = true;
  static bool is_terminal(const v1::StreamLoadResponse& event) { return event.has_loaded(); }
  static bool is_known(const v1::StreamLoadResponse& event) {
    return event.event_case() != v1::StreamLoadResponse::EVENT_NOT_SET;
  }
};

/// What has been read of one stream, without any I/O.
///
/// The terminal event is held back until the status is OK, so whoever has it knows that the answer is whole; events of
/// an arm that this version does not know are skipped.
template <class E>
class Reading {
 public:
  State state() const { return state_; }
  /// The first event that the caller saw; null before.
  const E* first() const { return first_ ? &*first_ : nullptr; }
  /// The terminal event; null until the status was OK.
  const E* last() const { return state_ == State::completed && held_ ? &*held_ : nullptr; }

  /// Returns whether the caller sees this event now. The terminal event is taken out of `event`.
  bool passes(E& event) {
    if (Law<E>::is_terminal(event)) {
      held_ = std::move(event);
      return false;
    }
    if (!Law<E>::is_known(event)) return false;
    if (!first_) first_ = event;
    return true;
  }

  /// Takes the status OK and returns the terminal event, null for a stream that has none.
  ///
  /// @throws Error STREAM_TRUNCATED, when the terminal event never came.
  const E* end() {
    if (Law<E>::has_terminal && !held_) {
      state_ = State::failed;
      throw stream_truncated();
    }
    state_ = State::completed;
    return last();
  }

  /// Takes the end that is not OK; the first end counts.
  void stop(State state) {
    if (state_ == State::open) state_ = state;
  }

 private:
  State state_ = State::open;
  std::optional<E> first_;
  std::optional<E> held_;
};

/// An input iterator over whatever has `next()`, a pointer to the next value or null at the end.
///
/// A value lives until the iterator is advanced. To advance it waits for the next value and may throw Error.
template <class Source>
class NextIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = typename Source::value_type;
  using difference_type = std::ptrdiff_t;
  using pointer = const value_type*;
  using reference = const value_type&;

  /// The end.
  NextIterator() = default;
  /// The next value of `source`, which must stay where it is.
  explicit NextIterator(Source& source) : source_(&source), current_(source.next()) {}

  reference operator*() const { return *current_; }
  pointer operator->() const { return current_; }
  NextIterator& operator++() {
    current_ = source_->next();
    return *this;
  }
  /// Gives a copy of the value, as `*i++` needs it.
  value_type operator++(int) {
    value_type value = *current_;
    ++*this;
    return value;
  }
  friend bool operator==(const NextIterator& left, const NextIterator& right) {
    return left.current_ == right.current_;
  }
  friend bool operator!=(const NextIterator& left, const NextIterator& right) { return !(left == right); }

 private:
  Source* source_ = nullptr;
  pointer current_ = nullptr;
};

/// The messages of one call, once and in order. A range for one reader: `for (const auto& event : stream)`.
///
/// Its end of life ends the call: to leave the scope early cancels. One thread reads; any thread may `cancel`.
template <class E>
class Stream {
 public:
  using value_type = E;
  using iterator = NextIterator<Stream>;

  /// Takes a call that has begun.
  Stream(std::unique_ptr<grpc::ClientContext> context, std::unique_ptr<grpc::ClientReader<E>> reader)
      : context_(std::move(context)), reader_(std::move(reader)) {}

  /// Moves the call; iterators of `other` must not be used any more.
  Stream(Stream&& other) noexcept = default;
  /// Closes this stream's own call first.
  Stream& operator=(Stream&& other) noexcept {
    if (this == &other) return *this;
    close();
    reader_ = std::move(other.reader_);
    context_ = std::move(other.context_);
    reading_ = std::move(other.reading_);
    current_ = std::move(other.current_);
    return *this;
  }
  ~Stream() { close(); }

  /// Begins with the next event, not with the first one again.
  iterator begin() { return iterator(*this); }
  iterator end() { return iterator(); }

  /// Waits for the next event. Null after the last one; what it points to lives until the next call.
  ///
  /// @throws Error the call failed, or ended without its last event.
  const E* next() {
    if (!is_running()) return nullptr;
    while (reader_->Read(&current_)) {
      if (reading_.passes(current_)) return &current_;
    }
    const grpc::Status status = reader_->Finish();
    if (!status.ok()) {
      reading_.stop(State::failed);
      throw Error(status);
    }
    return reading_.end();
  }

  /// Ends the call; who waits for the next event gets Error CANCELLED. After the end it does nothing.
  void cancel() {
    if (context_ != nullptr) context_->TryCancel();
  }

  /// Cancels the call if it still runs, and ends the iteration.
  void close() {
    if (!is_running()) return;
    reading_.stop(State::cancelled);
    context_->TryCancel();
    // gRPC wants to see every call finished; a cancelled one finishes without waiting for the server.
    reader_->Finish();
  }

  State state() const { return reading_.state(); }

  /// Such as "<Stream [open]>".
  std::string describe() const { return "<Stream [" + std::string(name_of(state())) + "]>"; }

 protected:
  const Reading<E>& reading() const { return reading_; }

 private:
  // A stream that was moved away has no reader.
  bool is_running() const { return reader_ != nullptr && state() == State::open; }

  // The reader uses the context, so it must go first.
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReader<E>> reader_;
  Reading<E> reading_;
  E current_;
};

/// The text of an answer as it comes, and nothing else of it. `S` is CompletionStream, or a reference to one.
template <class S>
class Text {
 public:
  using value_type = std::string;
  using iterator = NextIterator<Text>;

  explicit Text(S&& stream) : stream_(std::forward<S>(stream)) {}

  iterator begin() { return iterator(*this); }
  iterator end() { return iterator(); }

  /// Waits for the next piece of text. Null after the last one; what it points to lives until the next call.
  ///
  /// @throws Error as the stream does.
  const std::string* next() {
    auto& stream = static_cast<std::remove_reference_t<S>&>(stream_);
    while (const v1::StreamCompleteResponse* event = stream.next()) {
      if (event->has_text()) return &event->text().text();
    }
    return nullptr;
  }

 private:
  // Not a bare reference: a view can be assigned.
  std::conditional_t<std::is_reference_v<S>, std::reference_wrapper<std::remove_reference_t<S>>, S> stream_;
};

/// The events of one answer: `started`, deltas, and `completion` last. Unknown events are skipped.
///
/// The completion comes only when the status is OK, so it proves that the answer is whole.
class CompletionStream : public Stream<v1::StreamCompleteResponse> {
 public:
  using Stream::Stream;
  /// Takes the call of any stream of these events.
  explicit CompletionStream(Stream&& stream) : Stream(std::move(stream)) {}

  /// The beginning of the answer; null until it has been read.
  const v1::Started* started() const {
    const v1::StreamCompleteResponse* first = reading().first();
    return first != nullptr && first->has_started() ? &first->started() : nullptr;
  }

  /// The end of the answer; null until all of it has been read.
  const v1::Completion* completion() const {
    const v1::StreamCompleteResponse* last = reading().last();
    return last == nullptr ? nullptr : &last->completion();
  }

  /// The text alone, piece by piece, of a stream that must outlive the view.
  Text<CompletionStream&> text() & { return Text<CompletionStream&>(*this); }
  /// The text alone, piece by piece; the view owns the stream, so `for (auto& piece : client.stream(request).text())`
  /// is sound and cancels when it is left.
  Text<CompletionStream> text() && { return Text<CompletionStream>(std::move(*this)); }

  /// Reads the rest and returns the answer as Complete would have given it.
  ///
  /// @throws Error the call failed, or ended without its completion.
  v1::CompleteResponse gather() { return inferwire::gather(*this); }
};

}  // namespace inferwire
