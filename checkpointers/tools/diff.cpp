// marlin-ckpt diff A B
#include <iostream>

#include "commands.h"
#include "contents.h"
#include "difference.h"
#include "marlin/checkpointers/archive.h"
#include "marlin/sdk/text.h"
#include "marlin/tools/text.h"

namespace marlin::ckpt {
namespace {

using What = Difference::What;

std::string of_all(const TensorDifference& tensor) {
  std::string text = concat(tensor.different, " of ", counted(static_cast<uint64_t>(tensor.elements), "element"));
  text += tensor.different == 1 ? " differs" : " differ";
  if (tensor.max_abs) text += concat(", by up to ", rounded(*tensor.max_abs));
  if (tensor.with_nan > 0) text += concat(", ", tensor.with_nan, " with NaN");
  return text;
}

std::string text_of(const Difference& difference) {
  switch (difference.what) {
    case What::kOnlyInA: return "only in A: " + short_text(*difference.a);
    case What::kOnlyInB: return "only in B: " + short_text(*difference.b);
    case What::kElements: return of_all(difference.tensor);
    case What::kKind:
    case What::kValue:
    case What::kLayout: break;
  }
  const std::string a = short_text(*difference.a), b = short_text(*difference.b);
  // The integer 1 and the float 1 look the same, as do long texts with equal beginnings.
  if (a != b) return concat(a, " in A, ", b, " in B");
  if (difference.what == What::kKind) return concat(difference.a->kind(), " ", a, " in A, ", difference.b->kind(), " ", b, " in B");
  return concat(a, " in both as far as shown, different after that");
}

Json value_to_json(const Value* value) {
  if (value == nullptr) return nullptr;
  Json json = {{"kind", value->kind()}};
  if (const auto* tensor = value->get_if<at::Tensor>()) {
    json["dtype"] = dtype_name(tensor->scalar_type());
    json["shape"] = tensor->sizes().vec();
  } else if (const auto* dict = value->get_if<StateDict>()) {
    json["size"] = dict->size();
  } else if (is_container(*value)) {
    json["size"] = value->as_items().size();
  } else {
    json["value"] = scalar_to_json(*value);
  }
  return json;
}

Json difference_to_json(const Difference& difference) {
  constexpr const char* kWhat[] = {"only_in_a", "only_in_b", "kind", "value", "layout", "elements"};
  Json json = {{"path", difference.path},
               {"what", kWhat[static_cast<size_t>(difference.what)]},
               {"a", value_to_json(difference.a)},
               {"b", value_to_json(difference.b)}};
  if (difference.what != What::kElements) return json;
  const TensorDifference& tensor = difference.tensor;
  json["elements"] = tensor.elements;
  json["different_elements"] = tensor.different;
  json["elements_with_nan"] = tensor.with_nan;
  json["max_abs_difference"] = tensor.max_abs ? to_json(*tensor.max_abs) : Json();
  return json;
}

std::string conclusion(const Comparison& comparison) {
  int64_t both = 0, only_a = 0, only_b = 0;
  for (const Difference& difference : comparison.differences) {
    ++(difference.what == What::kOnlyInA ? only_a : difference.what == What::kOnlyInB ? only_b : both);
  }
  std::vector<std::string> parts;
  if (both > 0) parts.push_back(concat(both, " differ"));
  if (only_a > 0) parts.push_back(concat(only_a, " only in A"));
  if (only_b > 0) parts.push_back(concat(only_b, " only in B"));
  return concat("different: ", join(parts), "; ", counted(comparison.values, "value"), " compared");
}

int run(const Arguments& arguments) {
  const std::filesystem::path files[] = {arguments.file(0), arguments.file(1)};
  const Archive a = read_archive(files[0]), b = read_archive(files[1]);
  const Comparison comparison = compare(a.root, b.root);
  if (arguments.has("json")) {
    Json list = Json::array();
    for (const Difference& difference : comparison.differences) list.push_back(difference_to_json(difference));
    print({{"a", files[0].string()},
           {"b", files[1].string()},
           {"equal", comparison.equal()},
           {"values", comparison.values},
           {"tensors", comparison.tensors},
           {"differences", std::move(list)}});
  } else if (comparison.equal()) {
    std::cout << "equal: " << counted(comparison.values, "value") << ", " << comparison.tensors << " of them tensors\n";
  } else {
    Table table({{"value"}, {"difference"}});
    for (const Difference& difference : comparison.differences) table.add({printable(difference.path), text_of(difference)});
    std::cout << table.text() << '\n' << conclusion(comparison) << '\n';
  }
  return comparison.equal() ? kGood : kBad;
}

}  // namespace

Command diff_command() {
  return {"diff", {"A", "B"}, "Whether the states of two files are equal bit by bit, else where they differ and by how much.",
          "Compares the values of two states, each by the way to it: numbers, texts and tensors bit by bit (two NaN of the same bits\n"
          "are equal, 0.0 and -0.0 are not), tensors with dtype and shape. Not compared: the record, the order of keys, dict or\n"
          "OrderedDict, its attributes (_metadata), strides, shared storage. A list and a tuple are not the same. Both files are\n"
          "verified in full. Exit code 0: equal; 1: different, or one is broken.",
          {}, &run};
}

}  // namespace marlin::ckpt
