#include "marlin/core/data/iterable_loader.h"

#include <algorithm>

#include "marlin/sdk/text.h"

namespace marlin {
namespace {

template <class T>
const T& entry(const StateDict& state, const char* name, const char* kind) {
  const Value* value = state.find(name);
  const T* found = value != nullptr ? value->get_if<T>() : nullptr;
  if (found != nullptr) return *found;
  throw Error(Errc::kMismatch, concat("loader position: '", name, "' must be ", kind, ", found ", value != nullptr ? value->kind() : "nothing"));
}

detail::BatchReader::Options reader_options(const LoaderRequest& request, const IterableLoaderOptions& options) {
  check_request(request);
  if (options.num_workers < 0 || options.num_workers > 1) {
    throw Error(Errc::kInvalidArgument, concat("num_workers is ", options.num_workers, ", but samples that come one after the other are read by one thread: give 0 or 1"));
  }
  return {options.num_workers, options.prefetch_factor, options.pin_memory, request.stop_requested};
}

}  // namespace

detail::SampleStream::~SampleStream() = default;

IterableLoaderBase::IterableLoaderBase(std::unique_ptr<detail::SampleStream> stream, const LoaderRequest& request, const IterableLoaderOptions& options)
    : request_(request),
      drop_last_(options.drop_last),
      stream_(std::move(stream)),
      reader_(reader_options(request, options), {{},
                                                 [this]() -> std::optional<detail::BatchJob> { return detail::BatchJob{{}, {}, seed_, epoch_}; },
                                                 [this](detail::BatchJob&, size_t, SampleContext&) { return read(); }}) {
  go_to(request_.seed, 0, 0, nullptr);
}

IterableLoaderBase::~IterableLoaderBase() = default;

std::optional<int64_t> IterableLoaderBase::num_samples() const { return num_samples_; }
int64_t IterableLoaderBase::batch_size() const { return request_.batch_size; }
bool IterableLoaderBase::drop_last() const { return drop_last_; }
bool IterableLoaderBase::interrupted() const { return interrupted_; }
int64_t IterableLoaderBase::consumed_samples() const { return consumed_; }
void IterableLoaderBase::begin_epoch(int64_t epoch) { go_to(request_.seed, epoch, 0, nullptr); }

void IterableLoaderBase::go_to(uint64_t seed, int64_t epoch, int64_t consumed, const StateDict* dataset) {
  reader_.reset_and_wait();
  stream_->clear();
  stream_->begin_epoch(seed, epoch);
  if (dataset != nullptr) stream_->update_state(*dataset);
  num_samples_ = stream_->num_samples();
  position_ = stream_->get_state();
  seed_ = seed;
  epoch_ = epoch;
  consumed_ = num_read_ = consumed;
  ended_ = stream_ended_ = interrupted_ = false;
}

// Called by whoever reads.
detail::ReadBatch IterableLoaderBase::read() {
  stream_->clear();
  int64_t count = 0;
  while (!stream_ended_ && count < request_.batch_size) {
    try {
      if (stream_->read()) ++count;
      else stream_ended_ = true;
    } catch (...) {
      detail::throw_sample_error(num_read_ + count, epoch_);
    }
  }
  if (count == 0 || (drop_last_ && count < request_.batch_size)) return {{}, {}, true};
  const Range own = rank_slice(count, request_.rank, request_.world_size);
  detail::ReadBatch done;
  try {
    done.batch = stream_->collate(own.begin == own.end ? Range{0, 1} : own);  // none of its own: one for the shapes
  } catch (...) {
    const std::string cause = detail::current_exception_text();
    throw Error(Errc::kTraining, concat("data set: samples ", num_read_ + own.begin, " to ", num_read_ + std::max(own.end, own.begin + 1) - 1, " of epoch ", epoch_,
                                        ": they cannot be made a batch: ", cause));
  }
  done.batch = detail::dataset_batch(std::move(done.batch), {own.begin, own.end, count});
  done.after = stream_->get_state();
  num_read_ += count;
  return done;
}

bool IterableLoaderBase::next(Batch& into) {
  interrupted_ = false;
  if (ended_) return false;
  detail::ReadBatch read;
  const auto outcome = reader_.next(read);
  interrupted_ = outcome == detail::BatchReader::Outcome::kInterrupted;
  ended_ = outcome == detail::BatchReader::Outcome::kEnd;
  if (interrupted_ || ended_) return false;
  into = std::move(read.batch);
  position_ = std::move(read.after);
  consumed_ += into.num_global_samples;
  return true;
}

StateDict IterableLoaderBase::get_state() const {
  StateDict state{{"epoch", epoch_}, {"consumed_samples", consumed_}, {"seed", static_cast<int64_t>(seed_)}, {"dataset", position_}};
  if (num_samples_) state.set("num_samples", *num_samples_);
  return state;
}

void IterableLoaderBase::update_state(const StateDict& state) {
  const int64_t epoch = entry<int64_t>(state, "epoch", "an int");
  const int64_t consumed = entry<int64_t>(state, "consumed_samples", "an int");
  const auto seed = static_cast<uint64_t>(entry<int64_t>(state, "seed", "an int"));
  const StateDict& dataset = entry<StateDict>(state, "dataset", "a dict");
  if (const std::vector<std::string> found = differences(state); !found.empty()) throw Error(Errc::kMismatch, join(found, "; "));
  if (epoch < 0 || consumed < 0) throw Error(Errc::kMismatch, concat("loader position: epoch ", epoch, ", sample ", consumed, " does not exist"));
  const StateDict before = position_;
  const bool ended = ended_;
  try {
    go_to(seed, epoch, consumed, &dataset);
  } catch (...) {
    const std::string cause = detail::current_exception_text();
    go_to(seed_, epoch_, consumed_, &before);
    ended_ = ended;
    throw Error(Errc::kMismatch, concat("data set: it does not take the position in the file: ", cause));
  }
}

}  // namespace marlin
