package pickle

// memo holds the values that a pickle numbered. Picklers count up from 0 or 1,
// so it is a slice; numbers far beyond those that were given out so far go into
// a map, for a pickle may name any of 2^32 in six bytes.
type memo struct {
	dense []uint32 // ref + 1, 0 for none
	// top is one above the highest number in dense since reset.
	top   uint32
	count uint32 // numbers in use
	far   map[uint32]uint32
}

// reach is how far above the count of numbers in use one may lie in the slice.
const reach = 256

func (m *memo) reset() {
	clear(m.dense[:m.top])
	m.top, m.count = 0, 0
	if m.far != nil {
		m.far = nil
	}
}

func (m *memo) put(index uint32, r Ref) {
	if index >= uint32(len(m.dense)) {
		if index > 2*m.count+reach {
			m.putFar(index, r)
			return
		}
		m.dense = append(m.dense, make([]uint32, int(index)+1-len(m.dense)+len(m.dense)/2)...)
		m.dense = m.dense[:cap(m.dense)]
	}
	if index >= m.top {
		m.top = index + 1
	}
	if m.dense[index] == 0 {
		m.count++
	}
	m.dense[index] = uint32(r) + 1
}

func (m *memo) putFar(index uint32, r Ref) {
	if m.far == nil {
		m.far = make(map[uint32]uint32)
	}
	if m.far[index] == 0 {
		m.count++
	}
	m.far[index] = uint32(r) + 1
}

func (m *memo) get(index uint32) (Ref, bool) {
	if index < uint32(len(m.dense)) && m.dense[index] != 0 {
		return Ref(m.dense[index] - 1), true
	}
	r := m.far[index]
	return Ref(r - 1), r != 0
}
