// What constants.h tells of keys and values in a page.
#pragma once

// Rows of codes of `bits` bits, eight codes of a row to a word of nibbles (codes.py), or of bytes if they have 8: `place` words
// behind the beginning of the head's part of a page, `row` words from those of one row, or of rows that share words, to the next,
// `plane` from one plane to the next.
struct Strip {
  int bits, place, row, plane;
};

// Neighbouring columns of one form: a power of two of them, at least 16. Codes of more than 4 and less than 8 bits have their
// upper 4 in one strip and the rest in another; other codes have none in `lower`.
struct Piece {
  int columns, first, bits, segment;
  Strip upper, lower;
};
