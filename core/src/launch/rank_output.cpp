#include "launch/rank_output.h"

#include <limits.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "marlin/sdk/text.h"

namespace marlin::launch {
namespace {

constexpr size_t kLongestLine = 1 << 20;  // a longer one comes in parts
constexpr std::string_view kClearToEnd = "\x1b[K";

// What a terminal shows of a line that was redrawn: what stands behind the last carriage return.
std::string_view visible(std::string_view line) {
  while (line.ends_with('\r')) line.remove_suffix(1);
  line.remove_prefix(line.rfind('\r') + 1);  // npos + 1 is 0
  while (line.starts_with(kClearToEnd)) line.remove_prefix(kClearToEnd.size());
  while (line.ends_with(kClearToEnd)) line.remove_suffix(kClearToEnd.size());
  return line;
}

bool can_redraw(int descriptor) {
  const char* term = std::getenv("TERM");
  return isatty(descriptor) != 0 && (term == nullptr || std::string_view(term) != "dumb");
}

// A line that wraps could not be taken back.
std::string_view cut_to_width(std::string_view text, int terminal) {
  winsize size{};
  const size_t columns = ioctl(terminal, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col : 120;
  if (text.size() < columns) return text;
  size_t end = columns - 1;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not within a character
  return text.substr(0, end);
}

}  // namespace

void Outlet::put(std::string_view text) {
  if (closed_) return;
  if (written_ > text_.size() / 2) {
    text_.erase(0, written_);
    written_ = 0;
  }
  text_ += text;
}

void Outlet::write_some() {
  for (int pieces = 0; pieces < 64 && pending() > 0; ++pieces) {
    pollfd ready = {descriptor_, POLLOUT, 0};
    if (poll(&ready, 1, 0) <= 0) return;
    // A pipe that can be written takes that much without blocking, and in one piece.
    std::string_view piece = std::string_view(text_).substr(written_, PIPE_BUF);
    if (const size_t end = piece.rfind('\n'); end != std::string_view::npos) piece = piece.substr(0, end + 1);
    const ssize_t done = write(descriptor_, piece.data(), piece.size());
    if (done >= 0) {
      written_ += static_cast<size_t>(done);
    } else if (errno == EAGAIN || errno == EINTR) {
      return;
    } else {
      closed_ = true;
      drop();
    }
  }
}

void Outlet::drop() {
  text_.clear();
  written_ = 0;
}

Console::Console(int out, int err) : out_(out), err_(err), terminal_(can_redraw(err)) {}

void Console::out_text(std::string_view text) {
  clear();
  out_.put(text);
}

void Console::err_line(std::string_view line) {
  clear();
  err_.put(line);
  err_.put("\n");
}

void Console::set_bar(std::string_view text) {
  if (!terminal_ || text == bar_) return;
  if (text.empty()) clear();
  bar_ = text;
  drawn_ = false;
  redraw();
}

void Console::redraw() {
  if (bar_.empty() || drawn_) return;
  err_.put(concat("\r", cut_to_width(bar_, err_.descriptor()), kClearToEnd));
  drawn_ = true;
}

void Console::clear() {
  if (!drawn_) return;
  err_.put(concat("\r", kClearToEnd));
  drawn_ = false;
}

void RankStream::take(std::string_view bytes) {
  if (kind_ == Kind::kOut) {
    const size_t end = bytes.rfind('\n') + 1;  // npos + 1 is 0
    if (end > 0 || rest_.size() + bytes.size() > kLongestLine) {
      const size_t whole = end > 0 ? end : bytes.size();
      console_->out_text(rest_.append(bytes.substr(0, whole)));
      rest_ = bytes.substr(whole);
    } else {
      rest_ += bytes;
    }
    return;
  }
  for (size_t end = bytes.find('\n'); end != std::string_view::npos; end = bytes.find('\n')) {
    end_line(rest_.append(bytes.substr(0, end)));
    rest_.clear();
    bytes.remove_prefix(end + 1);
  }
  rest_ += bytes;
  // What was drawn over need not be kept.
  if (const size_t text = rest_.find_last_not_of('\r'); text != std::string::npos) {
    if (const size_t over = rest_.rfind('\r', text); over != std::string::npos) rest_.erase(0, over);
  }
  if (rest_.size() > kLongestLine) {
    end_line(rest_);
    rest_.clear();
  }
  if (kind_ != Kind::kBar) return;
  const std::string_view bar = rest_.find('\r') == std::string::npos ? std::string_view() : visible(rest_);
  console_->set_bar(bar.empty() ? "" : prefix_ + std::string(bar));
}

void RankStream::finish() {
  if (kind_ == Kind::kBar) console_->set_bar("");
  if (kind_ == Kind::kOut && !rest_.empty()) console_->out_text(rest_);
  if (kind_ != Kind::kOut && !visible(rest_).empty()) end_line(rest_);
  rest_.clear();
}

void RankStream::end_line(std::string_view line) { console_->err_line(prefix_ + std::string(visible(line))); }

}  // namespace marlin::launch
