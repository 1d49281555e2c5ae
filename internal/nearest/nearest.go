// Package nearest finds what somebody meant who mistyped a word.
package nearest

import "math"

// Word returns the known word that is closest to the given one, or "" if none
// is close: at most half of the letters of the longer one may differ.
func Word(word string, known []string) string {
	best, at := "", math.MaxInt
	for _, k := range known {
		if d := distance(word, k); d < at && d <= max(len(word), len(k))/2 {
			best, at = k, d
		}
	}
	return best
}

// distance counts the letters that have to be inserted, left out, replaced or
// swapped with their neighbour to get from a to b. Swaps count one, because
// they are the most common slip of a typist.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
