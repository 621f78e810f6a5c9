#include "backends/replica_check.h"

#define XXH_INLINE_ALL
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/nn/module.h>
#include <xxhash.h>

#include <algorithm>
#include <functional>
#include <map>

#include "marlin/sdk/error.h"
#include "marlin/sdk/text.h"

namespace marlin {
namespace {

constexpr int64_t kPieceBytes = 25 << 20;
constexpr int64_t kAlignment = 16;  // the largest element

std::string hash_of(const void* bytes, size_t size) {
  XXH128_canonical_t result;
  XXH128_canonicalFromHash(&result, XXH3_128bits(bytes, size));
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : result.digest) text += {kDigits[byte >> 4], kDigits[byte & 15]};
  return text;
}

struct Difference {
  size_t line = 0;                   // the first in which a rank differs from rank 0
  size_t num_lines = 0;              // in which ranks differ
  std::vector<int> ranks;            // who differs in that one
  std::optional<std::string> first, other;  // rank 0's, and that of the first of `ranks`; unset: it has fewer lines
};

// Rank 0 compares, and words it; all get its words. Empty: no difference. Lines are sent only if their hashes differ.
std::string compare(Communicator& communicator, const std::vector<std::string>& lines, const std::function<std::string(const Difference&)>& words) {
  std::string text;
  for (const std::string& line : lines) text += one_line(line) + '\n';
  std::vector<std::string> all = communicator.gather_bytes(hash_of(text.data(), text.size()));
  const bool same = std::all_of(all.begin(), all.end(), [&](const std::string& hash) { return hash == all.front(); });
  if (communicator.broadcast_bytes(same ? "same" : "", 0) == "same") return {};

  all = communicator.gather_bytes(text);
  std::vector<std::vector<std::string>> of_ranks;
  size_t most = 0;
  for (const std::string& one : all) {
    of_ranks.push_back(split(one, '\n'));
    most = std::max(most, of_ranks.back().size());
  }
  const auto line_of = [&](size_t rank, size_t line) { return line < of_ranks[rank].size() ? std::optional(of_ranks[rank][line]) : std::nullopt; };
  Difference difference;
  for (size_t line = 0; line < most; ++line) {
    std::vector<int> ranks;
    for (size_t rank = 1; rank < of_ranks.size(); ++rank) {
      if (line_of(rank, line) != line_of(0, line)) ranks.push_back(static_cast<int>(rank));
    }
    if (ranks.empty() || difference.num_lines++ > 0) continue;
    difference.line = line;
    difference.first = line_of(0, line);
    difference.other = line_of(static_cast<size_t>(ranks.front()), line);
    difference.ranks = std::move(ranks);
  }
  return communicator.broadcast_bytes(difference.num_lines > 0 ? words(difference) : "", 0);
}

std::string who(const std::vector<int>& ranks) {
  std::vector<std::string> numbers;
  for (const int rank : ranks) numbers.push_back(std::to_string(rank));
  return concat(numbers.size() > 1 ? "ranks " : "rank ", join(numbers));
}

void require_strided(const NamedTensors& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (tensor.defined() && tensor.layout() != at::kStrided) {
      throw Error(Errc::kUnsupported, concat("ddp: '", name, "' is a sparse tensor, which is not kept the same on all ranks: make it dense, or no parameter or buffer"));
    }
  }
}

// The bytes of a tensor's elements, in their order.
at::Tensor bytes_of(const at::Tensor& tensor) { return tensor.detach().contiguous().view(-1).view(at::kByte); }

}  // namespace

NamedTensors named_tensors(const torch::nn::Module& module) {
  NamedTensors result;
  for (const auto& item : module.named_parameters()) result.emplace_back(item.key(), item.value());
  for (const auto& item : module.named_buffers()) result.emplace_back(item.key(), item.value());
  return result;
}

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  const auto numbers = [](at::IntArrayRef values) {
    std::vector<std::string> texts;
    for (const int64_t value : values) texts.push_back(std::to_string(value));
    return concat(" [", join(texts), "]");
  };
  std::string text = concat(c10::toString(tensor.scalar_type()), numbers(tensor.sizes()));
  if (tensor.layout() == at::kStrided && !tensor.is_contiguous()) text += ", strides" + numbers(tensor.strides());
  if (!tensor.device().is_cpu()) text += concat(", ", c10::DeviceTypeName(tensor.device().type(), /*lower_case=*/true));
  return text;
}

void require_same_on_all_ranks(Communicator& communicator, const std::vector<std::string>& lines, const std::string& what) {
  const std::string text = compare(communicator, lines, [&](const Difference& difference) {
    const auto quoted = [](const std::optional<std::string>& line) { return line ? concat("'", *line, "'") : "nothing more"; };
    return concat(who(difference.ranks), difference.ranks.size() > 1 ? " have " : " has ", quoted(difference.other), " where rank 0 has ", quoted(difference.first));
  });
  if (!text.empty()) throw Error(Errc::kMismatch, concat("ddp: ", what, ": ", text));
}

std::optional<std::string> difference_between_ranks(Communicator& communicator, const NamedTensors& tensors) {
  require_strided(tensors);
  std::vector<std::string> lines;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor bytes = tensor.defined() ? bytes_of(tensor).cpu() : at::Tensor();
    lines.push_back(concat(tensor.defined() ? hash_of(bytes.const_data_ptr(), bytes.nbytes()) : "undefined", " ", name));
  }
  std::string text = compare(communicator, lines, [](const Difference& difference) {
    const std::string& line = difference.first ? *difference.first : *difference.other;
    std::string words = concat(who(difference.ranks), difference.ranks.size() > 1 ? " have" : " has", " other values than rank 0 in '", line.substr(line.find(' ') + 1), "'");
    if (difference.num_lines > 1) words += concat(", the first of ", difference.num_lines, " tensors that differ");
    return words;
  });
  if (text.empty()) return {};
  return text;
}

ReplicaBroadcast::ReplicaBroadcast(Communicator& communicator, const NamedTensors& tensors) : communicator_(&communicator) {
  std::vector<std::string> lines;
  std::map<const at::TensorImpl*, std::string> seen;
  for (const auto& [name, tensor] : tensors) {
    std::string line = concat(name, ": ", describe(tensor));
    if (tensor.defined()) {
      const auto [at, is_new] = seen.emplace(tensor.unsafeGetTensorImpl(), name);
      if (!is_new) line += concat(", the same as ", at->second);
      if (tensor.requires_grad()) line += ", trained";
    }
    lines.push_back(std::move(line));
  }
  require_same_on_all_ranks(communicator, lines, "ranks have different models; make them alike on all, with the same options");
  require_strided(tensors);

  int64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined() || tensor.numel() == 0) continue;
    const auto size = static_cast<int64_t>(tensor.nbytes());
    if (pieces_.empty() || end + size > kPieceBytes || pieces_.back().front().tensor.device() != tensor.device()) {
      pieces_.emplace_back();
      end = 0;
    }
    pieces_.back().push_back({name, tensor, end, size});
    end = (end + size + kAlignment - 1) / kAlignment * kAlignment;
  }
}

void ReplicaBroadcast::send() const {
  const at::NoGradGuard no_grad;
  for (const std::vector<Part>& parts : pieces_) {
    for (const Part& part : parts) {
      if (static_cast<int64_t>(part.tensor.nbytes()) != part.size) {  // Gloo would end the processes that get more than they expect
        throw Error(Errc::kTraining, concat("ddp: '", part.name, "' has changed its size, to ", describe(part.tensor), ": parameters and buffers keep theirs within an epoch"));
      }
    }
    send(parts);
  }
}

void ReplicaBroadcast::send(const std::vector<Part>& parts) const {
  const Part& last = parts.back();
  const at::Tensor piece = at::empty({last.begin + last.size}, at::TensorOptions().dtype(at::kByte).device(last.tensor.device()));
  const bool is_root = communicator_->rank() == 0;
  for (const Part& part : parts) {
    if (is_root) piece.narrow(0, part.begin, part.size).copy_(bytes_of(part.tensor));
  }
  communicator_->broadcast(piece, 0);
  for (const Part& part : parts) {
    if (!is_root) part.tensor.copy_(piece.narrow(0, part.begin, part.size).view(part.tensor.scalar_type()).view(part.tensor.sizes()));
  }
}

void broadcast_from_rank_0(Communicator& communicator, const NamedTensors& tensors) { ReplicaBroadcast(communicator, tensors).send(); }

}  // namespace marlin
