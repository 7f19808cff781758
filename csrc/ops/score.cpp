#include "ops/score.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/check.h"
#include "core/denormals.h"
#include "core/half.h"
#include "ops/score_kernels.h"
#include "ops/softplus.h"

namespace kizu {

void check_score(const ScoreSpec& spec, const ScoreTensors& tensors, const float* scores, const float* map) {
  const bool sums = spec.rule != ScoreRule::logit;
  check(spec.weight >= 0 && spec.weight <= 1, "weight is ", spec.weight, ", but must lie in [0, 1]");
  check(spec.views >= 1, "views is ", spec.views, ", but must be at least 1");
  check(tensors.images >= 1 && tensors.images % spec.views == 0, "there are ", tensors.images,
        " images, but there must be at least one and a multiple of the ", spec.views, " views");
  check(scores != nullptr, "there is no memory for the scores");
  if (sums) {
    check(tensors.channels >= 1 && tensors.pixels >= 1, "x has ", tensors.channels, " channels of ", tensors.pixels,
          " pixels, but must have at least one of each");
    check(tensors.x && tensors.x_hat, "the rule reads x and x_hat, and one of them is missing");
  } else {
    check(map == nullptr, "the rule logit has no map");
  }
  if (spec.rule == ScoreRule::residual_feature) {
    check(tensors.features >= 1, "f has ", tensors.features, " features, but must have at least one");
    check(tensors.f && tensors.f_hat, "the rule reads f and f_hat, and one of them is missing");
  }
  if (reads_logit(spec.rule)) check(tensors.logit, "the rule reads logit, and it is missing");
}

namespace cpu {
namespace {

constexpr std::ptrdiff_t kPiece = 8;  // blocks of a plane that a thread takes at a time

// mean|a - b| of two tensors (images, planes, elements), of which the sums of the blocks are computed first.
struct Pair {
  const char *a, *b;
  int planes;
  std::ptrdiff_t elements;
  float* map;  // (images, elements) or null

  std::ptrdiff_t blocks() const { return (elements + kScoreBlock - 1) / kScoreBlock; }  // of a plane
  std::ptrdiff_t pieces() const { return (blocks() + kPiece - 1) / kPiece; }            // of an image
  std::ptrdiff_t sums() const { return planes * blocks(); }                             // of an image
};

// The block sums of one image in one piece of all its planes, plane after plane, so that the piece of the map stays in
// the cache; (planes, blocks) from `sums` on.
void sum_piece(const ScoreKernels& kernels, const Pair& pair, bool half, std::ptrdiff_t image, std::ptrdiff_t piece,
               float* sums) {
  const std::ptrdiff_t size = half ? 2 : 4, blocks = pair.blocks();
  const std::ptrdiff_t end = std::min(blocks, (piece + 1) * kPiece);
  for (int plane = 0; plane < pair.planes; ++plane) {
    const std::ptrdiff_t start = (image * pair.planes + plane) * pair.elements;
    for (std::ptrdiff_t block = piece * kPiece; block < end; ++block) {
      const std::ptrdiff_t first = block * kScoreBlock,
                           n = std::min<std::ptrdiff_t>(kScoreBlock, pair.elements - first);
      const char *a = pair.a + (start + first) * size, *b = pair.b + (start + first) * size;
      float* map = pair.map ? pair.map + image * pair.elements + first : nullptr;
      sums[plane * blocks + block] = !map         ? kernels.sum[half](a, b, n)
                                     : plane == 0 ? kernels.sum_and_write[half](a, b, n, map)
                                     : plane + 1 < pair.planes
                                         ? kernels.sum_and_add[half](a, b, n, map)
                                         : kernels.sum_and_divide[half](a, b, n, map, static_cast<float>(pair.planes));
    }
  }
}

double mean(const Pair& pair, const float* sums) {
  double total = 0;
  for (std::ptrdiff_t i = 0; i < pair.sums(); ++i) total += sums[i];
  return total / static_cast<double>(pair.planes * pair.elements);
}

double widened(const void* values, bool half, std::ptrdiff_t i) {
  return half ? half_to_float(static_cast<const std::uint16_t*>(values)[i]) : static_cast<const float*>(values)[i];
}

float reduce(Reduce how, const float* scores, int n) {
  if (how == Reduce::mean) {
    double total = 0;
    for (int i = 0; i < n; ++i) total += scores[i];
    return static_cast<float>(total / n);
  }
  float most = scores[0];
  for (int i = 1; i < n; ++i)
    if (scores[i] > most || scores[i] != scores[i]) most = scores[i];  // nothing is greater than a NaN
  return most;
}

}  // namespace

void score(const ScoreSpec& spec, const ScoreTensors& tensors, float* scores, float* map, ScoreScratch& scratch,
           ThreadPool& pool) {
  check_score(spec, tensors, scores, map);
  Pair pairs[2];
  int n_pairs = 0;
  std::ptrdiff_t pieces = 0, sums = 0;  // of an image
  const auto add = [&](const void* a, const void* b, int planes, std::ptrdiff_t elements, float* to) {
    const Pair& pair =
        pairs[n_pairs++] = {static_cast<const char*>(a), static_cast<const char*>(b), planes, elements, to};
    pieces += pair.pieces();
    sums += pair.sums();
  };
  if (spec.rule != ScoreRule::logit) add(tensors.x, tensors.x_hat, tensors.channels, tensors.pixels, map);
  if (spec.rule == ScoreRule::residual_feature) add(tensors.f, tensors.f_hat, 1, tensors.features, nullptr);

  scratch.block_sums.resize(static_cast<std::size_t>(tensors.images * sums));
  const ScoreKernels& kernels = KIZU_EACH_LEVEL_PICK(score_kernels);
  std::atomic<std::ptrdiff_t> next{0};
  const KeepDenormals keep;
  const auto take_pieces = [&](int) {
    for (std::ptrdiff_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tensors.images * pieces;) {
      const std::ptrdiff_t image = i / pieces;
      std::ptrdiff_t piece = i % pieces;
      float* to = scratch.block_sums.data() + image * sums;
      const Pair* pair = pairs;
      if (piece >= pair->pieces()) {
        piece -= pair->pieces();
        to += pair->sums();
        ++pair;
      }
      sum_piece(kernels, *pair, spec.half, image, piece, to);
    }
  };
  if (tensors.images * pieces > 1)
    pool.run(take_pieces);
  else
    take_pieces(0);

  float* each = scores;
  if (spec.views > 1) {
    scratch.view_scores.resize(static_cast<std::size_t>(tensors.images));
    each = scratch.view_scores.data();
  }
  for (int image = 0; image < tensors.images; ++image) {
    const float* of_image = scratch.block_sums.data() + image * sums;
    if (spec.rule == ScoreRule::logit) {
      each[image] = static_cast<float>(-widened(tensors.logit, spec.half, image));
      continue;
    }
    const double residual = mean(pairs[0], of_image);
    if (spec.rule == ScoreRule::residual) {
      each[image] = static_cast<float>(residual);
      continue;
    }
    const double other = spec.rule == ScoreRule::residual_feature ? mean(pairs[1], of_image + pairs[0].sums())
                                                                  : softplus(-widened(tensors.logit, spec.half, image));
    each[image] = static_cast<float>((1 - spec.weight) * residual + spec.weight * other);
  }
  if (spec.views > 1)
    for (int frame = 0; frame < tensors.images / spec.views; ++frame)
      scores[frame] = reduce(spec.reduce, each + frame * spec.views, spec.views);
}

}  // namespace cpu
}  // namespace kizu
