// A program around an engine for processors that this machine only emulates: steps in from a file, logits out to another.
//
// usage: main WEIGHTS STEPS LOGITS. STEPS is int32: batches; per batch its sequences; per sequence count, start, accepted,
// sealed, pages, outputs, whether parents follow, then tokens, parents, exact, packed.
#include <cstdio>
#include <vector>

#include "engine.cpp"

static std::vector<int32_t> words;
static size_t place = 0;
static int32_t next() { return words[place++]; }
static const int32_t* next(int32_t count) {
  place += size_t(count);
  return words.data() + place - count;
}

int main(int, char** argv) {
  std::FILE* file = std::fopen(argv[2], "rb");
  for (int32_t word; std::fread(&word, 4, 1, file) == 1;) words.push_back(word);
  std::fclose(file);
  char error[512] = "";
  ic_engine* engine;
  if (ic_open(argv[1], 2, &engine, error, sizeof error)) return std::fprintf(stderr, "%s\n", error), 1;
  std::FILE* out = std::fopen(argv[3], "wb");
  for (int32_t batches = next(); batches > 0; --batches) {
    const auto count = size_t(next());
    std::vector<ic_sequence> sequences(count);
    int32_t rows = 0;
    for (auto& s : sequences) {
      s = ic_sequence{};
      s.count = next(), s.start = next(), s.accepted = next(), s.sealed = next(), s.pages = next(), s.outputs = next();
      const bool tree = next() != 0;
      s.tokens = next(s.count);
      if (tree) s.parents = next(s.count);
      s.exact = next(s.pages);
      s.packed = next(s.pages);
      s.top_p = 1;
      rows += s.outputs;
    }
    std::vector<int32_t> sampled(size_t(rows) + 1);
    std::vector<float> scores(size_t(rows) * kVocabulary + 1);
    if (ic_step(engine, sequences.data(), int32_t(sequences.size()), sampled.data(), scores.data(), nullptr, error, sizeof error))
      return std::fprintf(stderr, "%s\n", error), 1;
    std::fwrite(scores.data(), 4, size_t(rows) * kVocabulary, out);
  }
  std::fclose(out);
  ic_close(engine);
  return 0;
}
