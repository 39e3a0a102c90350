// SPDX-License-Identifier: Apache-2.0
/// A whole file as read-only bytes.
#pragma once

#include <dsv4/core/error.hpp>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace dsv4::io {

/// How the bytes of a file come into the address space.
enum class file_access {
  map,   ///< mmap: pages load on first touch and are shared with other processes
  read,  ///< a private copy: for file systems without mmap, and for files that others may shorten
};

namespace detail {

/// The text of an errno value.
[[nodiscard]] inline std::string errno_text(int code) { return std::generic_category().message(code); }

/// Owns a file descriptor.
class unique_fd {
 public:
  explicit unique_fd(int fd) noexcept : fd_(fd) {}
  unique_fd(const unique_fd&) = delete;
  unique_fd& operator=(const unique_fd&) = delete;
  ~unique_fd() {
    if (fd_ >= 0) ::close(fd_);
  }

  [[nodiscard]] int get() const noexcept { return fd_; }
  /// Gives up ownership: the caller closes, because only close() itself tells of late write errors.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace detail

/// Tells the system that the whole pages of `bytes` are not needed for now. They keep their content: of a
/// mapping they come back from the file. Does nothing where the system cannot.
inline void release_pages(std::span<const std::byte> bytes) noexcept {
#ifdef MADV_PAGEOUT
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_PAGEOUT);
#else
  static_cast<void>(bytes);
#endif
}

/// A file held open as read-only bytes; move-only. The descriptor is closed once the bytes are there.
///
/// With `file_access::map`, a file that another process shortens while it is mapped raises SIGBUS on
/// touch, as for every mmap. Replacing a file by rename (as `safetensors_writer` does) is safe.
class mapped_file {
 public:
  /// No file, no bytes.
  mapped_file() = default;

  /// Opens `path`. Throws `io_error` when it cannot be opened, is not a regular file, or cannot be
  /// mapped or read whole.
  explicit mapped_file(std::filesystem::path path, file_access access = file_access::map)
      : path_(std::move(path)) {
    // O_NONBLOCK: opening a FIFO must come back and be refused below instead of waiting for a writer.
    const detail::unique_fd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd.get() < 0) fail("open", errno);
    struct stat status = {};
    if (::fstat(fd.get(), &status) != 0) fail("stat", errno);
    if (!S_ISREG(status.st_mode)) throw io_error(path_.string(), "open", "not a regular file");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return;  // mmap refuses length 0; no bytes is a valid answer
    if (access == file_access::map) {
      void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
      if (address == MAP_FAILED) fail("mmap", errno);
      mapping_ = {static_cast<const std::byte*>(address), unmap{size}};
      bytes_ = {mapping_.get(), size};
    } else {
      read_whole(fd.get(), size);
    }
  }

  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  mapped_file(mapped_file&& other) noexcept
      : path_(std::move(other.path_)),
        mapping_(std::move(other.mapping_)),
        copy_(std::move(other.copy_)),
        bytes_(std::exchange(other.bytes_, {})) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    path_ = std::move(other.path_);
    mapping_ = std::move(other.mapping_);
    copy_ = std::move(other.copy_);
    bytes_ = std::exchange(other.bytes_, {});
    return *this;
  }
  ~mapped_file() = default;

  /// All bytes of the file; valid while this object, or the one it was moved to, lives.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

 private:
  struct unmap {
    std::size_t size;  // no default initializer: GCC 12 would take the deleter for not constructible
    void operator()(const std::byte* address) const noexcept {
      ::munmap(const_cast<std::byte*>(address), size);  // munmap takes void*, though it writes nothing
    }
  };

  [[noreturn]] void fail(const char* operation, int code) const {
    throw io_error(path_.string(), operation, detail::errno_text(code));
  }

  void read_whole(int fd, std::size_t size) {
    try {
      copy_ = std::make_unique_for_overwrite<std::byte[]>(size);
    } catch (const std::bad_alloc&) {
      throw io_error(path_.string(), "read", "no memory for " + std::to_string(size) + " bytes");
    }
    for (std::size_t done = 0; done < size;) {
      // Linux moves at most about 2 GiB a call; ask for less so that the count is never cut silently.
      const std::size_t wanted = std::min(size - done, std::size_t{1} << 30U);
      const ssize_t got = ::pread(fd, copy_.get() + done, wanted, static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("read", errno);
      if (got == 0) {
        throw io_error(
            path_.string(), "read",
            "the file ended after " + std::to_string(done) + " of " + std::to_string(size) + " bytes");
      }
      done += static_cast<std::size_t>(got);
    }
    bytes_ = {copy_.get(), size};
  }

  std::filesystem::path path_;
  std::unique_ptr<const std::byte, unmap> mapping_;
  std::unique_ptr<std::byte[]> copy_;
  std::span<const std::byte> bytes_;
};

}  // namespace dsv4::io
