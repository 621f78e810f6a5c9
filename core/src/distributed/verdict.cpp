#include "distributed/verdict.h"

#include "distributed/within.h"
#include "marlin/sdk/text.h"

namespace marlin::distributed {
namespace {

constexpr const char* kAllow = "allow more time (--backend.timeout_seconds)";
constexpr const char* kNetwork = "see to the network between their machines";

std::string names_of(const std::vector<int>& ranks, const std::vector<std::string>& names) {
  std::vector<std::string> of;
  for (const int rank : ranks) of.push_back(names[static_cast<size_t>(rank)]);
  return join(of);
}

std::string gone(const std::string& who, bool one) {
  return concat(who, one ? " is" : " are", " gone: connection closed; see what ", one ? "it" : "they", " wrote last, and whether ", one ? "it was" : "they were", " killed");
}

}  // namespace

std::string verdict_of_gone(const std::string& name) { return gone(name, true); }

std::string verdict_of_silent(const std::string& name, std::chrono::milliseconds limit) {
  return concat(name, " did not answer within ", in_words(limit), ": stopped, or cut off from the network");
}

std::string verdict_on(const Answers& answers, const std::vector<std::string>& names, Saw saw, std::chrono::milliseconds limit) {
  const std::string silent = names_of(answers.silent, names), left = names_of(answers.left, names), late = names_of(answers.late, names);
  if (!silent.empty()) return saw == Saw::kClosed ? gone(silent, answers.silent.size() == 1) : verdict_of_silent(silent, limit);
  if (!left.empty()) return concat(left, answers.left.size() == 1 ? " has" : " have", " ended while others went on: all ranks must make the same calls");
  if (saw == Saw::kClosed) return concat("a connection between two ranks broke, though all of them still run; ", kNetwork);
  if (!late.empty()) return concat(late, " did not answer within ", in_words(limit), ": still busy with something else; if that is right, ", kAllow);
  return concat("what the ranks do together did not end within ", in_words(limit), ", though all of them still run; ", kNetwork, ", or ", kAllow);
}

}  // namespace marlin::distributed
