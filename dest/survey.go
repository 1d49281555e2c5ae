package dest

// Survey is what a look at a destination tells its administrator before and
// after a conversion. Nothing in it makes a run fail that State would let pass.
type Survey struct {
	Name string `json:"name" doc:"of the destination, without secrets"`
	// Problem is why no conversion could begin, as a sentence.
	Problem     string      `json:"problem" doc:"why no conversion could begin, empty if one could"`
	Server      string      `json:"server" doc:"version of the server, as it says"`
	Role        string      `json:"role" doc:"who is connected"`
	Encoding    string      `json:"encoding" doc:"of the database"`
	LZ4         bool        `json:"lz4" doc:"whether values can be compressed by lz4"`
	Condition   Condition   `json:"condition" doc:"absent, empty, interrupted or filled; empty text if it is not known"`
	Rights      []Right     `json:"rights" doc:"what the role may do of what a conversion needs"`
	Connections Connections `json:"connections" doc:"how many may connect"`
	Settings    []Setting   `json:"settings" doc:"those that matter for a load and afterwards"`
	Objects     int64       `json:"objects" doc:"rows of objects in it"`
	Bytes       int64       `json:"bytes" doc:"what its tables and indexes take"`
	BlobTiers   []BlobTier  `json:"blob_tiers" doc:"its blobs by where they are"`
	Faults      []Fault     `json:"faults" doc:"what of the schema of a finished one is not as a site needs it"`
	Advice      []string    `json:"advice" doc:"sentences: what to change, and why"`
	Notes       []string    `json:"notes" doc:"sentences: what could not be asked, what is an estimate"`
}

// Right is something that a conversion has to be allowed to do.
type Right struct {
	Name    string `json:"name" doc:"what"`
	Granted bool   `json:"granted" doc:"whether it is allowed"`
	// Needed tells whether a conversion cannot do without it.
	Needed bool   `json:"needed" doc:"whether a conversion cannot do without it"`
	Hint   string `json:"hint,omitempty" doc:"how to allow it"`
}

// Connections are those of a server.
type Connections struct {
	// Limit is what bounds them most tightly.
	Limit  string `json:"limit" doc:"what bounds them most tightly: max_connections, or the limit of the database or of the role"`
	Max    int    `json:"max" doc:"how many this limit lets the role have"`
	Used   int    `json:"used" doc:"how many count against it, without that of the survey"`
	Free   int    `json:"free" doc:"how many are left to this role"`
	Needed int    `json:"needed" doc:"how many a conversion with so many workers takes"`
}

// Setting is a setting of the server.
type Setting struct {
	Name  string `json:"name" doc:"of the setting"`
	Value string `json:"value" doc:"as the server shows it"`
	// Load and After are empty where it is well as it is.
	Load  string `json:"load,omitempty" doc:"advice for the time of the load"`
	After string `json:"after,omitempty" doc:"advice for the time afterwards"`
}

// BlobTier is a place of blobs.
type BlobTier struct {
	Tier    string `json:"tier" doc:"postgresql or s3"`
	Blobs   int64  `json:"blobs" doc:"how many"`
	Bytes   int64  `json:"bytes" doc:"theirs"`
	Largest int64  `json:"largest" doc:"bytes of the largest"`
}
