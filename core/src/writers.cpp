#include "marlin/core/writers.h"

#define XXH_INLINE_ALL
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <system_error>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

class StdoutWriter final : public Writer {
 public:
  explicit StdoutWriter(std::FILE* stream) : stream_(stream) {}

  void write(const MetricsEvent& event) override {
    if (event.kind == MetricsEvent::Kind::kStep) return;
    std::string line = concat("epoch=", event.epoch, " global_step=", event.global_step);
    for (const auto& [name, value] : event.metrics) {
      char number[32];
      std::snprintf(number, sizeof number, "%.6g", value);
      line += concat(" ", name, "=", number);
    }
    line += '\n';
    std::fwrite(line.data(), 1, line.size(), stream_);
  }
  void flush() override { std::fflush(stream_); }

 private:
  std::FILE* stream_;
};

// JSON has no NaN and no infinities.
nlohmann::ordered_json json_number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

class JsonlWriter final : public Writer {
 public:
  explicit JsonlWriter(const std::filesystem::path& dir) : path_(dir / "metrics.jsonl") {}

  void open() override {
    if (!file_) open_file();
  }

  void write(const MetricsEvent& event) override {
    nlohmann::ordered_json object = {{"kind", to_string(event.kind)}, {"epoch", event.epoch}, {"global_step", event.global_step}};
    for (const auto& [name, value] : event.metrics) object.emplace(name, json_number(value));
    const std::string line = object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
    open();
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size()) fail("write to", errno);
  }

  void flush() override {
    if (file_ && std::fflush(file_.get()) != 0) fail("write to", errno);
  }

  std::string name() const override { return "jsonl"; }

  StateDict get_state() override {
    open();
    flush();
    const int64_t bytes = size();
    return {{"bytes", bytes}, {"hash", hash_before(bytes)}};
  }

  void update_state(const StateDict& state, Logger& log) override {
    open();
    flush();  // opening it may have ended half a line
    const int64_t here = size();
    const int64_t bytes = state.at("bytes").as_int();
    if (here == 0 && bytes > 0) {
      log.info("the record of this run goes on in a new file, ", path_.string());
    } else if (bytes < 0 || here < bytes || state.at("hash").as_string() != hash_before(bytes)) {
      log.warning(path_.string(), " is not as the checkpoint knows it: it is appended to, and steps may be in it twice or be missing");
    } else if (here > bytes && !is_of_one_run(bytes, here)) {
      log.warning(path_.string(), ": another run has written to it since the checkpoint; it is appended to, and steps may be in it twice");
    } else if (here > bytes) {
      const std::filesystem::path aside = path_.parent_path() / "metrics.superseded.jsonl";
      move_tail(bytes, aside);
      log.info(path_.string(), ": what was recorded after the checkpoint (", here - bytes, " bytes) was moved to ", aside.string());
    }
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  [[noreturn]] void fail(const char* what, int error) const {
    throw Error(Errc::kIo, concat("cannot ", what, " ", path_.string(), ": ", std::strerror(error)));
  }

  [[nodiscard]] int64_t size() const {
    struct stat status {};
    if (fstat(fileno(file_.get()), &status) != 0) fail("look at", errno);
    return status.st_size;
  }

  [[nodiscard]] std::string read(int64_t begin, int64_t end) const {
    std::string bytes(static_cast<size_t>(end - begin), '\0');
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t got = pread(fileno(file_.get()), bytes.data() + done, bytes.size() - done, begin + static_cast<int64_t>(done));
      if (got <= 0) fail("read", got == 0 ? EIO : errno);
      done += static_cast<size_t>(got);
    }
    return bytes;
  }

  // Of the last bytes before a position: enough to know the file again.
  [[nodiscard]] std::string hash_before(int64_t position) const {
    constexpr int64_t kBytes = 4096;
    const std::string bytes = read(std::max<int64_t>(position - kBytes, 0), position);
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
    return text;
  }

  // Whether what lies between goes on where the line before it ends, as a run's records do. A line that is none says nothing.
  [[nodiscard]] bool is_of_one_run(int64_t position, int64_t end) const {
    constexpr int64_t kLine = 65536;  // more than a record has
    const int64_t begin = std::max<int64_t>(position - kLine, 0);
    const std::string bytes = read(begin, end);
    int64_t step = -1;
    size_t at = position == 0 ? 0 : bytes.rfind('\n', static_cast<size_t>(position - begin) - 2) + 1;
    for (size_t next = 0; at < bytes.size(); at = next + 1) {
      next = std::min(bytes.find('\n', at), bytes.size());
      const auto object = nlohmann::json::parse(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.begin() + static_cast<std::ptrdiff_t>(next), nullptr, /*allow_exceptions=*/false);
      const auto found = object.is_object() ? object.find("global_step") : object.end();
      if (!object.is_object() || found == object.end() || !found->is_number_integer()) continue;
      if (found->get<int64_t>() < step) return false;
      step = found->get<int64_t>();
    }
    return true;
  }

  // First kept, then cut off: a kill between the two loses nothing.
  void move_tail(int64_t position, const std::filesystem::path& aside) {
    const std::string tail = read(position, size());
    const std::unique_ptr<std::FILE, Close> file(std::fopen(aside.c_str(), "ae"));
    if (!file || std::fwrite(tail.data(), 1, tail.size(), file.get()) != tail.size() || std::fflush(file.get()) != 0) fail("keep the end of", errno);
    if (ftruncate(fileno(file_.get()), position) != 0) fail("cut the end of", errno);
    std::fseek(file_.get(), 0, SEEK_END);
  }

  void open_file() {
    if (path_.has_parent_path()) {
      std::error_code error;
      std::filesystem::create_directories(path_.parent_path(), error);
      if (error) fail("make the folder of", error.value());
    }
    file_.reset(std::fopen(path_.c_str(), "a+e"));
    if (!file_) fail("open", errno);
    // A run that was killed may have left half a line: it stays, but the next line must not become a part of it.
    if (std::fseek(file_.get(), -1, SEEK_END) == 0 && std::fgetc(file_.get()) != '\n') {
      std::fseek(file_.get(), 0, SEEK_END);
      std::fputc('\n', file_.get());
    } else {
      std::fseek(file_.get(), 0, SEEK_END);
    }
  }

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace

std::unique_ptr<Writer> make_stdout_writer(std::FILE* stream) { return std::make_unique<StdoutWriter>(stream); }
std::unique_ptr<Writer> make_jsonl_writer(const std::filesystem::path& dir) {
  std::error_code error;
  if (std::filesystem::exists(dir, error) && !std::filesystem::is_directory(dir, error)) {
    throw Error(Errc::kInvalidArgument, concat("writer.dir: '", dir.string(), "' is not a folder"));
  }
  return std::make_unique<JsonlWriter>(dir);
}

}  // namespace marlin
