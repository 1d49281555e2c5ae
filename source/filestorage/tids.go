package filestorage

import (
	"fmt"
	"slices"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

// equalTIDs finds out which of the transactions whose tid fell have the tid of
// an earlier one, which need not be the one just before. Rare, so it may cost
// another walk over the transaction headers. It takes 16 bytes for each fallen
// tid.
func (sc *scanner) equalTIDs() ([]source.TIDOrder, error) {
	if len(sc.fallen) == 0 {
		return nil, nil
	}
	// tids in ascending order, and where each was met first.
	tids := make([]zodb.TID, len(sc.fallen))
	for i, f := range sc.fallen {
		tids[i] = f.tid
	}
	slices.Sort(tids)
	tids = slices.Compact(tids)
	first := make([]int64, len(tids))

	list := slices.Clone(sc.falling) // in file order
	listed := 0
	var more []source.TIDOrder
	err := sc.s.eachTxn(sc.ctx, firstPos, sc.end, func(_ *window, t *txn) error {
		var entry *source.TIDOrder
		if listed < len(list) && list[listed].Pos == t.pos {
			entry = &list[listed]
			listed++
		}
		i, ok := slices.BinarySearch(tids, t.tid)
		if !ok || t.status == undone {
			return nil
		}
		switch {
		case first[i] == 0:
			first[i] = t.pos
		case entry != nil:
			entry.Equal, entry.Prev, entry.PrevPos = true, t.tid, first[i]
		case len(more) < maxFalling:
			more = append(more, source.TIDOrder{TID: t.tid, Pos: t.pos, Prev: t.tid, PrevPos: first[i], Equal: true})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for equal tids: %w", err)
	}
	// Those beyond the cap are appended, so that none of the kind that matters
	// most is hidden by a long list of the other.
	return append(list, more...), nil
}
