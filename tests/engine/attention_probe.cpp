// Attention alone, without a model: shapes are templates, planes and tables come at run time. Beside the reference, and timed.
#include <cstring>
#include <memory>
#include <string>

#include "attention.hpp"
#include "batch.hpp"
#include "memory.hpp"

using namespace ic;

namespace {

// Reads the layers as attention_probe.py writes them: one number after another.
struct Layers {
  std::vector<LayerCache> layers;
  std::vector<std::unique_ptr<Plane>> planes;
  std::vector<std::unique_ptr<Segment[]>> segments;
  const double* next;

  Layers(const double* numbers, int count) : next(numbers) {
    for (int i = 0; i < count; ++i) {
      const auto place = size_t(*next++);
      const Side keys = side(), values = side();
      layers.push_back({keys, values, place});
    }
  }

  int number() { return int(*next++); }
  void points(int8_t* out) {
    for (int i = 0; i < 16; ++i) out[i] = int8_t(number());
  }
  Side side() {
    auto plane = std::make_unique<Plane>();
    plane->kind = Kind(number());
    plane->transform = Transform(number());
    plane->scaled = number() != 0;
    plane->columns = number();
    plane->bytes = size_t(number());
    const auto mean = size_t(*next++), encode = size_t(*next++), decode = size_t(*next++);
    plane->segment_count = number();
    segments.push_back(std::make_unique<Segment[]>(size_t(plane->segment_count)));
    plane->segments = segments.back().get();
    for (int i = 0; i < plane->segment_count; ++i) {
      Segment& segment = segments.back()[i];
      segment.bits = number(), segment.first = number(), segment.columns = number();
      segment.unit = float(*next++);
      points(segment.points);
    }
    planes.push_back(std::move(plane));
    return {planes.back().get(), mean, encode, decode};
  }
};

struct Probe {
  virtual ~Probe() = default;
  virtual std::string step(const ic_sequence* sequences, int count, int layer, int window, float scale, const float* input,
                           float* output, int repeats, double* seconds) = 0;
  virtual uint8_t* pool(int which, uint64_t* bytes) = 0;
};

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

template <int LAYERS, int KV_HEADS, int GROUP, int D, int PAGE, int SINK, int RECENT, bool COMPRESSED>
struct Shape : Probe {
  using Pages = Cache<LAYERS, KV_HEADS, D, PAGE, SINK, RECENT, COMPRESSED>;
  static constexpr int HEADS = KV_HEADS * GROUP;
  using Attend = Attention<Pages, HEADS>;

  Shape(int thread_count, int exact, int packed, size_t packed_page, const double* numbers, const uint8_t* weights,
        const float* signs)
      : threads(thread_count), exact_pages(exact), packed_pages(packed), exact_pool(exact * Pages::EXACT_PAGE),
        packed_pool(packed * packed_page), layers(numbers, LAYERS),
        store{exact_pool.data(), packed_pool.data(), packed_page, layers.layers.data(), weights, signs},
        scratch(size_t(threads.count())), shared(threads.count()) {}

  // As the generated engine does it; attention itself `repeats` times, in `seconds` each.
  std::string step(const ic_sequence* sequences, int count, int layer, int window, float scale, const float* input,
                   float* output, int repeats, double* seconds) override {
    try {
      batch.fill(sequences, count, 64, 1 << 20, 1 << 20, 1 << 20, exact_pages, packed_pages, window);
    } catch (const std::string& message) {
      return message;
    }
    const size_t width = size_t(HEADS + 2 * KV_HEADS) * D;
    for (size_t row = 0; row < batch.tokens.size(); ++row) {
      const int slot = batch.exact_slots[row];
      for (int head = 0; head < KV_HEADS; ++head) {
        const float* key = input + row * width + (HEADS + head) * D;
        if (!append<Pages>(store, slot / PAGE, layer, head, slot % PAGE, key, key + KV_HEADS * D)) return "not finite";
      }
    }
    if constexpr (COMPRESSED) {
      threads.run(int(batch.seals.size()) * KV_HEADS, [&](int task, int thread) {
        const SealTask& page = batch.seals[size_t(task / KV_HEADS)];
        scratch[thread].sealer.seal(store, page.exact, page.packed, layer, task % KV_HEADS);
      });
    }
    const Attend attention{store, layer, window, scale, input, width, output, size_t(HEADS) * D};
    for (int i = 0; i < repeats; ++i) {
      const double start = now();
      attention.run(threads, batch.tiles, scratch, shared);
      seconds[i] = now() - start;
    }
    return "";
  }
  uint8_t* pool(int which, uint64_t* bytes) override {
    auto& pool = which == 0 ? exact_pool : packed_pool;
    *bytes = pool.size();
    return pool.data();
  }

  Threads threads;
  int exact_pages, packed_pages;
  Memory<uint8_t> exact_pool, packed_pool;
  Layers layers;
  typename Pages::Store store;
  Batch<Pages, HEADS> batch;
  std::vector<typename Attend::Scratch> scratch;
  typename Attend::Shared shared;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT Probe* probe_open(int shape, int threads, int exact, int packed, uint64_t packed_page, const double* layers,
                         const uint8_t* weights, const float* signs) {
  int index = 0;
#define SHAPE(...)     \
  if (shape == index++) \
    return new Shape<__VA_ARGS__>(threads, exact, packed, packed_page, layers, weights, signs);
#include "probe_shapes.hpp"
#undef SHAPE
  return nullptr;
}
EXPORT void probe_close(Probe* probe) { delete probe; }
EXPORT uint8_t* probe_pool(Probe* probe, int which, uint64_t* bytes) { return probe->pool(which, bytes); }
EXPORT int probe_step(Probe* probe, const ic_sequence* sequences, int count, int layer, int window, float scale,
                      const float* input, float* output, int repeats, double* seconds, char* error, int size) {
  const std::string message = probe->step(sequences, count, layer, window, scale, input, output, repeats, seconds);
  std::strncpy(error, message.c_str(), size_t(size));
  return message.empty() ? 0 : 1;
}
