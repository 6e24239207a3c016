#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace turboesm {

struct FastaRecord {
  std::string id;           // first word after '>'; "seq<index + 1>" when there is none
  std::string description;  // the rest of the header line, may be empty
  std::string sequence;     // lines joined, white space removed, otherwise as in the file; may be empty
  uint64_t index = 0;       // position in the file, from 0
  uint64_t line = 0;        // line of the header, from 1
};

// Reads FASTA record by record, in memory that does not grow with the file; gzip (of any number of members) is
// recognised by its first bytes. Lines end in LF, CRLF or CR. A UTF-8 byte order mark, blank lines and ';' comment
// lines are skipped.
//
// Errors (input) name the file and, where there is one, the line: no such file, a directory, an empty file, no record
// at all, text before the first '>', control characters (the file is binary), a damaged or cut-off gzip stream, a
// record over kMaxRecordBytes.
class FastaReader {
 public:
  // A header line or a sequence longer than this is taken for a file that is no FASTA.
  static constexpr uint64_t kMaxRecordBytes = uint64_t(1) << 28;

  explicit FastaReader(const std::string& path_or_dash);  // "-" reads standard input
  FastaReader(FastaReader&&) noexcept;
  FastaReader& operator=(FastaReader&&) noexcept;
  ~FastaReader();

  // Fills `record` with the next one, reusing its memory; false at the end of the file.
  bool next(FastaRecord& record);

  // Progress through the file as it lies on disk, compressed if it is. bytes_total() is 0 when unknown (a pipe).
  uint64_t bytes_read() const;
  uint64_t bytes_total() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace turboesm
