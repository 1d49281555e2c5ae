//go:build !faults || !unix

package fault

// Point is a place where a fault may strike. In this build none does.
func Point(string) {}
