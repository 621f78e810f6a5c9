#include "marlin/core/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {

Progress::~Progress() = default;

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

// "0:05", "12:34", "1:02:03"
std::string duration(double value) {
  const auto whole = static_cast<long long>(std::clamp(value, 0.0, 3.6e8));
  char text[40];
  if (whole >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  }
  return text;
}

class Off final : public Progress {
 public:
  void begin(const std::string&, std::optional<int64_t>, int64_t) override {}
  void step(double) override {}
  void end(const Metrics&) override {}
  void clear_line() override {}
};

// What both forms count.
class Counting : public Progress {
 public:
  Counting(std::FILE* stream, ProgressClock clock) : stream_(stream), clock_(clock) {}

  void begin(const std::string& label, std::optional<int64_t> total, int64_t done) override {
    label_ = label;
    total_ = total;
    done_ = first_ = done;
    loss_.reset();
    began_ = drawn_ = clock_();
  }

  void step(double loss) override {
    ++done_;
    loss_ = loss;
    const Clock::time_point now = clock_();
    if (now - drawn_ < interval()) return;
    drawn_ = now;
    draw(now);
  }

 protected:
  [[nodiscard]] virtual Clock::duration interval() const = 0;
  virtual void draw(Clock::time_point now) = 0;

  // "45/100" or "45 steps"
  [[nodiscard]] std::string count() const { return total_ ? concat(done_, "/", *total_) : concat(done_, done_ == 1 ? " step" : " steps"); }
  [[nodiscard]] double elapsed(Clock::time_point now) const { return seconds(now - began_); }
  [[nodiscard]] double rate(Clock::time_point now) const {
    return done_ > first_ ? static_cast<double>(done_ - first_) / std::max(elapsed(now), 1e-9) : 0.0;
  }
  // "  loss 0.53  123.4 steps/s  0:12 left"
  [[nodiscard]] std::string running(Clock::time_point now) const {
    std::string text;
    if (loss_) text += concat("  loss ", number(*loss_));
    const double per_second = rate(now);
    if (per_second > 0.0) {
      text += concat("  ", number(per_second), " steps/s");
      if (total_) text += concat("  ", duration(static_cast<double>(std::max<int64_t>(*total_ - done_, 0)) / per_second), " left");
    }
    return text;
  }
  // "epoch 3/5  100/100  0:34  2.9 steps/s  train/loss=0.53"
  [[nodiscard]] std::string summary(const Metrics& metrics) const {
    const Clock::time_point now = clock_();
    std::string line = concat(label_, "  ", count(), "  ", duration(elapsed(now)));
    if (rate(now) > 0.0) line += concat("  ", number(rate(now)), " steps/s");
    for (const auto& [name, value] : metrics) line += concat("  ", name, "=", number(value));
    return line;
  }
  void put(const std::string& text) const {
    std::fwrite(text.data(), 1, text.size(), stream_);
    std::fflush(stream_);
  }

  std::FILE* stream_;
  ProgressClock clock_;
  std::string label_;
  std::optional<int64_t> total_;
  int64_t done_ = 0, first_ = 0;
  std::optional<double> loss_;
  Clock::time_point began_{}, drawn_{};
};

class Plain final : public Counting {
 public:
  using Counting::Counting;
  void end(const Metrics& metrics) override { put(summary(metrics) + "\n"); }
  void clear_line() override {}

 protected:
  [[nodiscard]] Clock::duration interval() const override { return std::chrono::seconds(30); }
  void draw(Clock::time_point now) override { put(concat(label_, "  ", count(), running(now), "\n")); }
};

class Bar final : public Counting {
 public:
  using Counting::Counting;
  ~Bar() override { clear_line(); }

  void begin(const std::string& label, std::optional<int64_t> total, int64_t done) override {
    Counting::begin(label, total, done);
    draw(began_);
  }
  void end(const Metrics& metrics) override {
    clear_line();
    put(summary(metrics) + "\n");
  }
  void clear_line() override {
    if (!shown_) return;
    put("\r\x1b[K");
    shown_ = false;
    drawn_ -= interval();  // back with the next step
  }

 protected:
  [[nodiscard]] Clock::duration interval() const override { return std::chrono::milliseconds(100); }
  void draw(Clock::time_point now) override {
    std::string line = label_;
    if (total_ && *total_ > 0) {
      const double part = std::clamp(static_cast<double>(done_) / static_cast<double>(*total_), 0.0, 1.0);
      const auto filled = static_cast<size_t>(std::lround(part * kWidth));
      line += concat(" [", std::string(filled, '='), std::string(kWidth - filled, ' '), "] ", static_cast<int>(part * 100.0), "%");
    }
    line += concat("  ", count(), running(now));
    line.resize(std::min(line.size(), columns() - 1));  // a line that wraps could not be taken back
    put(concat("\r", line, "\x1b[K"));
    shown_ = true;
  }

 private:
  static constexpr size_t kWidth = 24;

  [[nodiscard]] size_t columns() const {
    winsize size{};
    if (ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 1) return size.ws_col;
    return 120;
  }

  bool shown_ = false;
};

bool can_redraw(std::FILE* stream) {
  const char* term = std::getenv("TERM");
  return isatty(fileno(stream)) != 0 && (term == nullptr || std::string_view(term) != "dumb");
}

}  // namespace

std::unique_ptr<Progress> make_progress(const std::string& mode, std::FILE* stream, ProgressClock clock) {
  if (mode == "off") return std::make_unique<Off>();
  if (mode == "plain" || (mode == "auto" && !can_redraw(stream))) return std::make_unique<Plain>(stream, clock);
  if (mode == "bar" || mode == "auto") return std::make_unique<Bar>(stream, clock);
  throw Error(Errc::kInvalidArgument, concat("progress must be auto, bar, plain or off, got '", mode, "'"));
}

}  // namespace marlin
