// A Python process that runs beside this one and is asked for one block at a time, so that its blocks and ours take turns.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"

namespace marlin::bench {

/// A script of this folder. Its first line says what it works with; then it answers every line that it is sent, the name of one
/// of its blocks, with a line that holds a number. Its standard error is ours. The end of its input ends it.
class Python {
 public:
  /// Waits for the first line. @throws std::runtime_error if there is none.
  Python(const std::string& script, const std::vector<std::string>& arguments);
  ~Python();
  Python(const Python&) = delete;
  Python& operator=(const Python&) = delete;

  [[nodiscard]] const std::string& works_with() const { return works_with_; }
  /// What `block` answers: the seconds it took, as a rule.
  double ask(const std::string& block);
  [[nodiscard]] Contender contender(const std::string& block);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  std::string answer(const std::string& what);

  pid_t pid_ = 0;
  std::unique_ptr<std::FILE, Close> questions_, answers_;
  std::string works_with_;
};

}  // namespace marlin::bench
