#include "marlin/tools/json.h"

#include <cmath>
#include <iostream>

#include "marlin/tools/text.h"

namespace marlin::tool {

Json to_json(double value) { return std::isfinite(value) ? Json(value) : Json(shortest(value)); }

void print(const Json& document) { std::cout << document.dump(1, ' ', false, Json::error_handler_t::replace) << '\n'; }

}  // namespace marlin::tool
