// The mapped weights file: a 64-byte header (magic, then the Program's sha256), then the tensors, 64-byte aligned.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "simd.hpp"

namespace ic {

class WeightsFile {
 public:
  static constexpr size_t HEADER = 64;

  // Throws a std::string that says what is wrong.
  WeightsFile(const char* path, const char* program, size_t bytes) : bytes_(bytes) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) throw std::string("cannot open ") + path;
    struct stat status;
    const bool whole = ::fstat(file, &status) == 0 && size_t(status.st_size) == bytes;
    void* map = whole ? ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    ::close(file);
    if (!whole) throw std::string(path) + " does not have the size that this engine was compiled for";
    if (map == MAP_FAILED) throw std::string("cannot map ") + path;
    data_ = static_cast<const uint8_t*>(map);
    char digest[65] = {};
    for (int i = 0; i < 32; ++i) {
      static const char hex[] = "0123456789abcdef";
      digest[2 * i] = hex[data_[16 + i] >> 4];
      digest[2 * i + 1] = hex[data_[16 + i] & 15];
    }
    if (std::memcmp(data_, "infer-compile\0\0\1", 16) != 0 || std::strcmp(digest, program) != 0) {
      ::munmap(const_cast<uint8_t*>(data_), bytes_);
      throw std::string(path) + " was not written for this engine";
    }
    ::madvise(const_cast<uint8_t*>(data_), bytes_, MADV_WILLNEED);
  }
  ~WeightsFile() { ::munmap(const_cast<uint8_t*>(data_), bytes_); }
  WeightsFile(const WeightsFile&) = delete;
  WeightsFile& operator=(const WeightsFile&) = delete;

  const uint8_t* at(size_t offset) const { return data_ + offset; }
  const uint16_t* vector(size_t offset) const { return reinterpret_cast<const uint16_t*>(data_ + offset); }

 private:
  const uint8_t* data_;
  size_t bytes_;
};

}  // namespace ic
