#include "launch/rank_output.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <random>
#include <stdexcept>

#include "marlin/sdk/text.h"

namespace marlin::launch {
namespace {

using ::testing::IsEmpty;
using ::testing::StartsWith;
using Kind = RankStream::Kind;

// A console whose output and error are files.
class Files {
 public:
  std::string out() { return text_of(console.out(), out_); }
  std::string err() { return text_of(console.err(), err_); }
  ~Files() { close(out_), close(err_); }

 private:
  static std::string text_of(Outlet& outlet, int file) {
    while (outlet.pending() > 0) outlet.write_some();
    std::string text(static_cast<size_t>(lseek(file, 0, SEEK_END)), '\0');
    if (pread(file, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) throw std::runtime_error("pread");
    return text;
  }
  int out_ = memfd_create("out", MFD_CLOEXEC), err_ = memfd_create("err", MFD_CLOEXEC);

 public:
  Console console{out_, err_};
};

TEST(RankOutputTest, StandardOutputIsNotChangedButHeldBackUntilALineIsWhole) {
  Files files;
  RankStream stream(files.console, Kind::kOut, "[rank 0] ");
  stream.take("a\rb\n\n\x1b[Kc");
  EXPECT_EQ(files.out(), "a\rb\n\n");
  stream.take("d\ne\nf");
  EXPECT_EQ(files.out(), "a\rb\n\n\x1b[Kcd\ne\n");
  stream.finish();
  stream.finish();
  EXPECT_EQ(files.out(), "a\rb\n\n\x1b[Kcd\ne\nf");
  EXPECT_EQ(files.err(), "");
}

TEST(RankOutputTest, OfARedrawnLineItsLastStateIsWritten) {
  for (const Kind kind : {Kind::kErr, Kind::kBar}) {
    Files files;
    RankStream stream(files.console, kind, "> ");
    for (const char* part : {"10%\r20%\r", "30%", "\r100%\n", "dos\r\n", "\rbar 1\x1b[K", "\rbar 2\x1b[K", "\r\x1b[Ksummary\n", "\n", "\r\x1b[K"}) stream.take(part);
    stream.finish();
    EXPECT_EQ(files.err(), "> 100%\n> dos\n> summary\n> \n");
  }
}

TEST(RankOutputTest, ALineThatIsRedrawnForHoursTakesNoMemory) {
  Files files;
  RankStream stream(files.console, Kind::kErr, "> ");
  const std::string bar = "\r" + std::string(99, '=');
  for (int i = 0; i < 100'000; ++i) stream.take(bar);
  EXPECT_EQ(files.err(), "");  // after a mebibyte without an end it would have come in parts
  stream.take("\n");
  EXPECT_EQ(files.err(), "> " + bar.substr(1) + "\n");
}

TEST(RankOutputTest, LinesOfMoreThanAMebibyteComeInParts) {
  Files files;
  RankStream out(files.console, Kind::kOut, ""), err(files.console, Kind::kErr, "> ");
  const std::string part(1 << 16, 'x');
  for (int i = 0; i < 40; ++i) out.take(part), err.take(part);
  out.take("\n"), err.take("y\n");
  EXPECT_EQ(files.out(), std::string(40 << 16, 'x') + "\n");
  std::string lines;
  for (int i = 0; i < 40; i += 17) lines += "> " + std::string(static_cast<size_t>(std::min(17, 40 - i)) << 16, 'x') + (i == 34 ? "y\n" : "\n");
  EXPECT_EQ(files.err(), lines);
}

TEST(RankOutputTest, AnyPiecesGiveTheSameLines) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(concat("seed ", seed));
  std::mt19937 random(seed);
  const std::string likely = "ab\r\n\n\x1b[K";
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (size_t size = random() % 30; size > 0; --size) text += likely[random() % likely.size()];
    Files whole, pieces;
    for (Files* files : {&whole, &pieces}) {
      RankStream out(files->console, Kind::kOut, ""), err(files->console, Kind::kErr, "> ");
      for (size_t at = 0; at < text.size();) {
        const size_t size = files == &whole ? text.size() : 1 + random() % 4;
        for (RankStream* stream : {&out, &err}) stream->take(std::string_view(text).substr(at, size));
        at += size;
      }
      out.finish(), err.finish();
    }
    ASSERT_EQ(pieces.err(), whole.err()) << "text '" << one_line(text) << "'";
    ASSERT_EQ(pieces.out(), text);
  }
}

TEST(RankOutputTest, AnOutletWritesNoMoreThanIsTaken) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);  // blocking: a write too many would hang
  Outlet outlet(ends[1]);
  std::string text;
  for (int i = 0; text.size() < 300'000; ++i) text += concat("line ", i, "\n");
  outlet.put(text);
  std::string got;
  char bytes[30000];
  while (outlet.pending() > 0 || got.size() < text.size()) {
    outlet.write_some();
    const ssize_t size = read(ends[0], bytes, sizeof bytes);
    ASSERT_GT(size, 0);
    got.append(bytes, static_cast<size_t>(size));
  }
  EXPECT_EQ(got, text);
  close(ends[0]), close(ends[1]);
}

TEST(RankOutputTest, AnOutletWritesWholeLinesAtOnceIfTheyFit) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_DIRECT), 0);  // it keeps the pieces apart
  Outlet outlet(ends[1]);
  const size_t sizes[] = {3000, 3000, 500, 500, 4096, 1, 9000, 1};
  for (const size_t size : sizes) outlet.put(std::string(size - 1, 'x') + "\n");
  outlet.write_some();
  ASSERT_EQ(outlet.pending(), 0U);
  char bytes[8192];
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  for (const ssize_t expected : {3000, 4000, 4096, 1, 4096, 4096, 809}) EXPECT_EQ(read(ends[0], bytes, sizeof bytes), expected);
  close(ends[0]), close(ends[1]);
}

// A console whose error is a terminal of 20 columns.
class Terminal {
 public:
  Terminal() {
    setenv("TERM", "xterm", 1);
    const winsize size{5, 20, 0, 0};
    if (grantpt(terminal_) != 0 || unlockpt(terminal_) != 0) throw std::runtime_error("no terminal");
    side_ = open(ptsname(terminal_), O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (side_ < 0 || ioctl(side_, TIOCSWINSZ, &size) != 0) throw std::runtime_error("no terminal");
    console.emplace(side_, side_);
  }
  ~Terminal() { close(side_), close(terminal_); }
  std::string shown() {
    console->redraw();
    for (Outlet* outlet : {&console->err(), &console->out()}) {
      while (outlet->pending() > 0) outlet->write_some();
    }
    std::string text(4096, '\0');
    const ssize_t size = read(terminal_, text.data(), text.size());
    text.resize(size < 0 ? 0 : static_cast<size_t>(size));
    return text;
  }
  std::optional<Console> console;

 private:
  int terminal_ = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), side_ = -1;
};

TEST(RankOutputTest, OnATerminalTheBarOfRankZeroStaysBelowTheLinesOfAll) {
  Terminal terminal;
  ASSERT_TRUE(terminal.console->shows_bar());
  RankStream bar(*terminal.console, Kind::kBar, "[0] "), other(*terminal.console, Kind::kErr, "[1] "), out(*terminal.console, Kind::kOut, "");
  bar.take("\rabc\x1b[K");
  EXPECT_EQ(terminal.shown(), "\r[0] abc\x1b[K");
  EXPECT_EQ(terminal.shown(), "");  // drawn once
  other.take("hello\n");
  other.take("again\n");
  EXPECT_EQ(terminal.shown(), "\r\x1b[K[1] hello\r\n[1] again\r\n\r[0] abc\x1b[K");  // the terminal makes \r\n of \n
  bar.take("\r0123456789abcd\xc3\xbcz\x1b[K");
  EXPECT_EQ(terminal.shown(), "\r[0] 0123456789abcd\x1b[K");  // cut before the character that would not fit
  out.take("out\n");
  EXPECT_THAT(terminal.shown(), StartsWith("\r\x1b[K"));
  bar.take("\r\x1b[K");
  EXPECT_EQ(terminal.shown(), "\r\x1b[K");
  bar.take("summary\n");
  EXPECT_EQ(terminal.shown(), "[0] summary\r\n");
  bar.take("\rlast");
  EXPECT_EQ(terminal.shown(), "\r[0] last\x1b[K");
  bar.finish();
  EXPECT_EQ(terminal.shown(), "\r\x1b[K[0] last\r\n");
}

}  // namespace
}  // namespace marlin::launch
