#include "checkpoint/folder.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <system_error>
#include <utility>

#include <dirent.h>

#include "checkpoint/fields.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

namespace fs = std::filesystem;
using Files = std::vector<std::unique_ptr<SafetensorsFile>>;

std::string display(const fs::path& path) { return printable(path.native()); }

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

Json read_if_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) ? read_json(path) : Json();
}

bool is_ggml(const fs::path& path) {
  const auto extension = path.extension();
  return extension == ".gguf" || extension == ".ggml" ||
         (extension == ".bin" && path.filename().native().find("ggml") != std::string::npos);
}

/// Whether a name promises weights in one of the formats that are refused by name.
bool is_foreign(const fs::path& path) {
  const auto extension = path.extension();
  if (is_ggml(path)) return true;
  return extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".ckpt";
}

[[noreturn]] void refuse_foreign(const fs::path& path) {
  require(!is_ggml(path), ErrorCode::unsupported,
          "{}: GGUF and GGML files are not supported: expected .safetensors", display(path));
  fail(ErrorCode::unsupported,
       "{}: pickle files are not supported: expected .safetensors (a pickle is a program)",
       display(path));
}

/// The regular files of a folder in order of name. Not by std::filesystem's iterator: libstdc++'s
/// allocates where nothing may be thrown, and ends the process if it cannot.
std::vector<fs::path> list(const fs::path& folder) {
  const auto check = [&](bool good) {
    if (const int error = errno; !good)
      fail(error == ENOMEM ? ErrorCode::out_of_memory : ErrorCode::not_found,
           "{}: cannot list the folder: {}", display(folder),
           std::system_category().message(error));
  };
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(folder.c_str()), ::closedir);
  check(directory != nullptr);
  std::vector<fs::path> files;
  for (;;) {
    errno = 0;  // at the end it stays so
    const dirent* entry = ::readdir(directory.get());
    if (!entry) break;
    if (fs::path file = folder / entry->d_name; is_file(file)) files.push_back(std::move(file));
  }
  check(errno == 0);
  std::sort(files.begin(), files.end());
  return files;
}

/// A name from inside a file may only mean a file beside it.
void check_plain_name(const std::string& name, const std::string& origin) {
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of(std::string_view("/\\:\0", 4)) == std::string::npos;
  require(plain, ErrorCode::malformed,
          "{}: expected the name of a file in the same folder, found {}", origin, show(Json{name}));
}

Files open_one(const fs::path& path, const std::string& how, LoadReport& report) {
  Files files;
  files.push_back(std::make_unique<SafetensorsFile>(path));
  report.decisions.push_back("weights from " + display(path.filename()) + ": " + how);
  return files;
}

Files open_shards(const fs::path& index_file, LoadReport& report) {
  const Json index = read_json(index_file);
  const std::string origin = display(index_file.filename());
  const Json* weight_map = Fields(index, origin).find({"weight_map"});
  const auto* shard_of = weight_map ? weight_map->get<Json::Object>() : nullptr;
  require(shard_of && !shard_of->empty(), ErrorCode::malformed,
          "{}: expected an object weight_map of tensors and files", origin);

  std::map<std::string, std::unique_ptr<SafetensorsFile>> shards;
  for (const auto& [tensor, shard] : *shard_of) {
    const auto* name = shard.get<std::string>();
    require(name, ErrorCode::malformed, "{}: {}: expected the name of a file, found {}", origin,
            printable(tensor), show(shard));
    auto& file = shards[*name];
    if (!file) {
      check_plain_name(*name, origin);
      const fs::path path = index_file.parent_path() / *name;
      require(is_file(path), ErrorCode::not_found, "{}: shard {} is missing", origin,
              display(path));
      file = std::make_unique<SafetensorsFile>(path);
    }
    require(file->find(tensor) != nullptr, ErrorCode::malformed,
            "{}: tensor {} should be in {}, but is not", origin, printable(tensor),
            printable(*name));
  }
  report.decisions.push_back(fmt::format("weights from {} shards of {}", shards.size(), origin));
  Files files;
  for (auto& [name, file] : shards) files.push_back(std::move(file));
  return files;
}

/// The names a single weight file may have, best first, and what makes them so.
std::vector<std::pair<std::string, std::string>> likely_names(const QuantizationConfig& settings) {
  std::vector<std::pair<std::string, std::string>> names;
  if (!settings.weight_file.empty()) {
    check_plain_name(settings.weight_file, settings.origin + ": model_file_base_name");
    names.emplace_back(settings.weight_file + ".safetensors", "model_file_base_name");
  }
  if (settings.bits && settings.group_size)
    names.emplace_back(
        fmt::format("gptq_model-{}bit-{}g.safetensors", *settings.bits, *settings.group_size),
        "named by bits and group size");
  names.emplace_back("model.safetensors", "the usual name");
  return names;
}

}  // namespace

Json Folder::quantization() const {
  if (config.is_null()) return {};
  const Json* found = Fields(config, "config.json").find({"quantization_config"});
  return found ? *found : Json();
}

Folder open_folder(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  require(fs::exists(status), ErrorCode::not_found, "{}: no such file or folder", display(path));
  Folder folder;
  if (fs::is_directory(status)) {
    folder.path = path;
  } else {
    if (is_foreign(path)) refuse_foreign(path);
    require(path.extension() == ".safetensors", ErrorCode::unsupported,
            "{}: expected a folder or a .safetensors file", display(path));
    folder.weight_file = path;
    folder.path = path.has_parent_path() ? path.parent_path() : fs::path(".");
  }
  folder.config = read_if_there(folder.path / "config.json");
  folder.quantize_config = read_if_there(folder.path / "quantize_config.json");
  folder.quant_config = read_if_there(folder.path / "quant_config.json");
  return folder;
}

Files open_weights(const Folder& folder, const QuantizationConfig& settings, LoadReport& report) {
  if (!folder.weight_file.empty()) return open_one(folder.weight_file, "as asked for", report);
  for (const auto& [name, how] : likely_names(settings))
    if (is_file(folder.path / name)) return open_one(folder.path / name, how, report);
  const fs::path index = folder.path / "model.safetensors.index.json";
  if (is_file(index)) return open_shards(index, report);

  std::vector<fs::path> candidates;
  std::optional<fs::path> foreign;
  for (const fs::path& file : list(folder.path)) {
    if (file.extension() == ".safetensors") candidates.push_back(file);
    if (is_foreign(file)) foreign = file;
  }
  if (candidates.empty() && foreign) refuse_foreign(*foreign);
  require(!candidates.empty(), ErrorCode::not_found, "{}: expected a .safetensors file, found none",
          display(folder.path));
  std::string names;
  for (const fs::path& file : candidates)
    names += (names.empty() ? "" : ", ") + display(file.filename());
  require(candidates.size() == 1, ErrorCode::not_found,
          "{}: expected one .safetensors file or an index, found {}: name the one that is meant",
          display(folder.path), names);
  return open_one(candidates.front(), "the only .safetensors file", report);
}

TensorTable::TensorTable(std::span<const std::unique_ptr<SafetensorsFile>> files) {
  for (const auto& file : files)
    for (const TensorEntry& entry : file->tensors()) {
      const auto [other, is_new] = tensors_.emplace(entry.name, StoredTensor{file.get(), &entry});
      require(is_new, ErrorCode::malformed, "tensor {} is both in {} and in {}",
              printable(entry.name), display(other->second.file->file().path()),
              display(file->file().path()));
    }
}

StoredTensor TensorTable::take(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return {};
  taken_.insert(name);
  return found->second;
}

std::vector<std::string> TensorTable::unused() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_)
    if (!taken_.contains(name)) names.push_back(printable(name));
  return names;
}

std::uint64_t TensorTable::bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [name, tensor] : tensors_) sum += tensor.entry->bytes;
  return sum;
}

std::int64_t TensorTable::layers() const {
  constexpr std::string_view kPrefix = "model.layers.";
  std::int64_t count = 0;
  for (auto it = tensors_.lower_bound(std::string(kPrefix));
       it != tensors_.end() && it->first.starts_with(kPrefix); ++it) {
    int index = -1;
    const char* digits = it->first.data() + kPrefix.size();
    const auto [end, error] = std::from_chars(digits, it->first.data() + it->first.size(), index);
    if (error == std::errc() && end != digits && *end == '.' && index >= 0)
      count = std::max(count, std::int64_t(index) + 1);
  }
  return count;
}

}  // namespace guanaco
