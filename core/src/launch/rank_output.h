// What ranks print, brought together line by line.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace marlin::launch {

/// Text on its way to a descriptor that may take it slowly, or not any more. Writes nothing by itself.
class Outlet {
 public:
  explicit Outlet(int descriptor) : descriptor_(descriptor) {}

  void put(std::string_view text);
  /// Writes some of it, in pieces that end with a line where they can. After poll() has said that the descriptor can be written, it does not
  /// block. Whatever cannot be written, because the reader is gone, is dropped, and all that comes later, too.
  void write_some();
  void drop();  ///< All that is still to be written.

  [[nodiscard]] size_t pending() const { return text_.size() - written_; }
  [[nodiscard]] int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
  bool closed_ = false;
  std::string text_;
  size_t written_ = 0;  // of text_
};

/// The standard output and the standard error that all ranks share.
class Console {
 public:
  /// @param out, err descriptors. The bar is shown only if `err` is a terminal that can redraw a line.
  Console(int out, int err);

  void out_text(std::string_view text);
  void err_line(std::string_view line);      ///< Without its end.
  /// The last line of a terminal, which other lines push down; empty: none.
  void set_bar(std::string_view text);
  /// Draws the bar again if lines have taken its place.
  void redraw();

  [[nodiscard]] bool shows_bar() const { return terminal_; }
  [[nodiscard]] Outlet& out() { return out_; }
  [[nodiscard]] Outlet& err() { return err_; }
  [[nodiscard]] size_t pending() const { return out_.pending() + err_.pending(); }

 private:
  void clear();

  Outlet out_, err_;
  bool terminal_;
  std::string bar_;
  bool drawn_ = false;
};

/// What one rank writes to its standard output or error.
class RankStream {
 public:
  enum class Kind : unsigned char {
    kOut,   ///< To the standard output, byte by byte as it came, but a line is held back until it is whole.
    kErr,   ///< To the standard error, with `prefix` before each line; of a line that was redrawn (`\r`) what stands in the end.
    kBar,   ///< As kErr, and a line that is being redrawn is the console's bar.
  };
  /// @param console must live as long.
  RankStream(Console& console, Kind kind, std::string prefix) : console_(&console), kind_(kind), prefix_(std::move(prefix)) {}

  void take(std::string_view bytes);
  void finish();  ///< No more comes: a last line without an end is a line.

 private:
  void end_line(std::string_view line);

  Console* console_;
  Kind kind_;
  std::string prefix_;
  std::string rest_;  // of a line that has no end yet
};

}  // namespace marlin::launch
