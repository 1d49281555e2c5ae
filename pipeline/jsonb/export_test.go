package jsonb

// Printed is the text of a jsonb, for benchmarks.
func Printed(value any) []byte { return printed(value) }
