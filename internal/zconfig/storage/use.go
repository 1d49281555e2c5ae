package storage

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

// reader gives the values of a section's keys and takes note of which were asked
// for, so that none that is given is passed over.
type reader struct {
	n     *node
	taken map[string]bool
}

func (n *node) reader() *reader { return &reader{n: n, taken: map[string]bool{}} }

// get gives the value of a key. That of one without value and preset is empty.
func (r *reader) get(key string) value {
	r.taken[key] = true
	if vs := r.n.values[key]; len(vs) > 0 {
		return vs[0]
	}
	return value{key: key, pos: r.n.pos}
}

func (r *reader) text(key string) string { return r.get(key).text }

// flag gives the value of a boolean key, and nil if it is not given, whatever its
// preset.
func (r *reader) flag(key string) *bool {
	v := r.get(key)
	if !v.given {
		return nil
	}
	return &v.bool
}

// unused lists the keys that are given and have no effect. One that should have
// one and that nobody asked for is an error.
func (r *reader) unused() ([]Unused, error) {
	var list []Unused
	for _, name := range slices.Sorted(maps.Keys(r.n.values)) {
		if r.taken[name] {
			continue
		}
		for _, v := range r.n.values[name] {
			spec, err := r.n.is.find(&zconfig.Key{Name: name, Pos: v.pos})
			if err != nil {
				return nil, err
			}
			switch {
			case !v.given:
			case spec.effect == acts:
				return nil, zconfig.Errorf(v.pos, "the key %s in <%s> is of no use here", name, r.n.is.name)
			default:
				list = append(list, Unused{Section: r.n.is.name, Key: name, Pos: v.pos, Why: spec.why})
			}
		}
	}
	return list, nil
}

// outer makes the keys of the section around one count with its own.
func (n *node) outer(around *node) { n.around = append(n.around, around) }

// finish lists the unused keys of a section and of those around it.
func finish(readers ...*reader) ([]Unused, error) {
	var all []Unused
	for _, r := range readers {
		list, err := r.unused()
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	sortByPlace(all)
	return all, nil
}

func sortByPlace(list []Unused) {
	slices.SortFunc(list, func(a, b Unused) int {
		if c := strings.Compare(a.Pos.File, b.Pos.File); c != 0 {
			return c
		}
		return a.Pos.Line - b.Pos.Line
	})
}

// refuse is the error for a storage or a key that a conversion cannot follow.
func refuse(at zconfig.Position, hint, format string, args ...any) error {
	return &zconfig.Error{Pos: at, Reason: fmt.Sprintf(format, args...), Hint: hint}
}
