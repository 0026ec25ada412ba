// The weights file: a 64-byte header (magic, then the Program's sha256), then the tensors, 64-byte aligned.
//
// It is read into memory of the engine's own, in large pages where the system has them: a mapped file has small ones, whose
// tables cost a third of the bandwidth in virtual machines.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "memory.hpp"
#include "threads.hpp"

namespace ic {

class WeightsFile {
 public:
  static constexpr size_t HEADER = 64;

  // Every thread reads a part, so that on a machine of several sockets the pages lie spread over them. Throws a std::string
  // that says what is wrong.
  WeightsFile(const char* path, const char* program, size_t bytes, Threads& threads) : memory_(bytes), data_(memory_.data()) {
    const int file = ::open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) throw std::string("cannot open ") + path;
    struct stat status;
    const bool whole = ::fstat(file, &status) == 0 && size_t(status.st_size) == bytes;
    const bool ours = whole && read(file, 0, HEADER) && written_for(program);
    std::atomic<bool> complete{ours};
    if (ours) {
      threads.run(int((bytes + PART - 1) / PART), [&](int part, int) {
        const size_t first = size_t(part) * PART;
        if (!read(file, first, std::min(PART, bytes - first))) complete = false;
      });
    }
    ::close(file);
    if (!whole) throw std::string(path) + " does not have the size that this engine was compiled for";
    if (!ours) throw std::string(path) + " was not written for this engine";
    if (!complete) throw std::string("cannot read ") + path;
  }

  const uint8_t* at(size_t offset) const { return data_ + offset; }
  const uint16_t* vector(size_t offset) const { return reinterpret_cast<const uint16_t*>(at(offset)); }

 private:
  static constexpr size_t PART = size_t(8) << 20;

  bool read(int file, size_t first, size_t bytes) {
    while (bytes > 0) {
      const ssize_t got = ::pread(file, data_ + first, bytes, off_t(first));
      if (got <= 0) return false;
      first += size_t(got), bytes -= size_t(got);
    }
    return true;
  }

  bool written_for(const char* program) const {
    static const char hex[] = "0123456789abcdef";
    char digest[65] = {};
    for (int i = 0; i < 32; ++i) digest[2 * i] = hex[data_[16 + i] >> 4], digest[2 * i + 1] = hex[data_[16 + i] & 15];
    return std::memcmp(data_, "infer-compile\0\0\1", 16) == 0 && std::strcmp(digest, program) == 0;
  }

  Memory<uint8_t> memory_;
  uint8_t* data_;
};

}  // namespace ic
