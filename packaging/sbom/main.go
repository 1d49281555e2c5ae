// Command sbom tells what a release is made of: for each binary a bill of
// materials in CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), and for all
// of them one file with the licences of everything that is linked in, as these
// licences demand of those who pass binaries on.
//
//	sbom -version V -commit C -time SECONDS -licences OUT.txt BINARY=OUT.cdx.json ...
//
// It runs in the module that the binaries are built from. What is in a binary is
// read from the binary: the Go linker writes down modules, versions and sums. A
// module whose licence is missing or unknown, or whose files are not those that
// were linked, is an error: nobody should release it unseen.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
)

func main() {
	r := &release{modules: map[string]*module{}}
	flag.StringVar(&r.version, "version", "", "the release's `VERSION`")
	flag.StringVar(&r.commit, "commit", "", "the `COMMIT` it is built from")
	seconds := flag.Int64("time", 0, "its time in `SECONDS` since 1970")
	licences := flag.String("licences", "", "write the licences to `FILE`")
	flag.Parse()
	r.time = time.Unix(*seconds, 0).UTC()
	if flag.NArg() == 0 || r.version == "" || *licences == "" {
		fmt.Fprintln(os.Stderr, "usage: sbom -version V -commit C -time SECONDS -licences OUT.txt BINARY=OUT.cdx.json ...")
		os.Exit(2)
	}
	if err := r.write(flag.Args(), *licences); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// release is what the binaries have in common.
type release struct {
	version, commit string
	time            time.Time
	modules         map[string]*module // of all binaries, by name@version
}

// module is one that is linked in. The standard library is one of them.
type module struct {
	name, version string
	sum           string // as go.sum has it; the standard library has none
	licences      []licence
}

func (m *module) String() string { return m.name + "@" + m.version }

// standard is the name that scanners know the standard library by.
const standard = "std"

func (r *release) write(pairs []string, licences string) error {
	type built struct {
		binary, out string
		info        *debug.BuildInfo
	}
	var all []built
	for _, p := range pairs {
		binary, out, ok := strings.Cut(p, "=")
		if !ok {
			return fmt.Errorf("%q is not BINARY=OUT", p)
		}
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			return fmt.Errorf("read what %s is built from: %w", binary, err)
		}
		for _, m := range linked(info) {
			r.modules[m.String()] = m
		}
		all = append(all, built{binary, out, info})
	}
	if err := r.findLicences(); err != nil {
		return err
	}
	for _, b := range all {
		if err := r.writeBill(b.binary, b.out, b.info); err != nil {
			return fmt.Errorf("describe %s: %w", b.binary, err)
		}
	}
	return os.WriteFile(licences, r.licenceText(), 0o644)
}

// linked lists the modules in a binary, without its own.
func linked(info *debug.BuildInfo) []*module {
	modules := []*module{{name: standard, version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		modules = append(modules, &module{name: d.Path, version: d.Version, sum: d.Sum})
	}
	return modules
}

// findLicences reads those of all modules.
func (r *release) findLicences() error {
	places, err := r.places()
	if err != nil {
		return err
	}
	for key, m := range r.modules {
		if m.licences, err = readLicences(places[key]); err != nil {
			return fmt.Errorf("licences of %s: %w", m, err)
		}
	}
	return nil
}

// places asks Go for the folders in which the modules' files are, and compares
// their sums with those that were linked.
func (r *release) places() (map[string]string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	places := map[string]string{}
	args := []string{"mod", "download", "-json"}
	for key, m := range r.modules {
		if m.name == standard {
			places[key] = strings.TrimSpace(string(root))
		} else {
			args = append(args, key)
		}
	}
	if len(args) == 3 {
		return places, nil
	}
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go mod download: %w", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var have struct{ Path, Version, Dir, Sum string }
		if err := d.Decode(&have); err != nil {
			return nil, fmt.Errorf("read what go mod download says: %w", err)
		}
		key := have.Path + "@" + have.Version
		if m := r.modules[key]; m == nil || m.sum != have.Sum {
			return nil, fmt.Errorf("%s: the files in Go's cache (%s) are not those that were linked", key, have.Sum)
		}
		places[key] = have.Dir
	}
	return places, nil
}

// bill and the types below it are the parts of CycloneDX that are used.
type bill struct {
	Format       string      `json:"bomFormat"`
	SpecVersion  string      `json:"specVersion"`
	SerialNumber string      `json:"serialNumber"`
	Version      int         `json:"version"`
	Metadata     metadata    `json:"metadata"`
	Components   []component `json:"components"`
}

type metadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string          `json:"type"`
	Ref        string          `json:"bom-ref"`
	Name       string          `json:"name"`
	Version    string          `json:"version"`
	Hashes     []hash          `json:"hashes,omitempty"`
	Licences   []licenceChoice `json:"licenses,omitempty"`
	URL        string          `json:"purl"`
	Properties []property      `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type licenceChoice struct {
	Licence struct {
		ID string `json:"id"`
	} `json:"license"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (r *release) writeBill(binary, out string, info *debug.BuildInfo) error {
	content, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	b := bill{Format: "CycloneDX", SpecVersion: "1.6", Version: 1}
	// The number is the binary's: the same binary has the same bill.
	b.SerialNumber = "urn:uuid:" + uuid.NewSHA1(uuid.NameSpaceURL, sum[:]).String()
	own, err := readLicences(".")
	if err != nil {
		return fmt.Errorf("licence of the tool itself: %w", err)
	}
	b.Metadata.Timestamp = r.time.Format(time.RFC3339)
	b.Metadata.Component = component{
		Type: "application", Name: filepath.Base(info.Path), Version: r.version,
		URL:    packageURL(info.Main.Path, "v"+r.version),
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum[:])}}, Licences: choices(own),
		Properties: []property{{"commit", r.commit}},
	}
	b.Metadata.Component.Ref = b.Metadata.Component.URL
	for _, s := range info.Settings {
		switch s.Key {
		case "GOOS", "GOARCH", "CGO_ENABLED":
			b.Metadata.Component.Properties = append(b.Metadata.Component.Properties, property{s.Key, s.Value})
		}
	}
	for _, l := range linked(info) {
		c, err := r.modules[l.String()].component()
		if err != nil {
			return err
		}
		b.Components = append(b.Components, c)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(text, '\n'), 0o644)
}

func (m *module) component() (component, error) {
	url := packageURL(m.name, m.version)
	c := component{Type: "library", Ref: url, Name: m.name, Version: m.version, URL: url, Licences: choices(m.licences)}
	if m.name == standard {
		return c, nil
	}
	// A sum of go.sum is the SHA-256 of a list of files with their SHA-256s.
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:"))
	if err != nil || len(raw) != sha256.Size {
		return c, fmt.Errorf("%s has the sum %q", m, m.sum)
	}
	c.Hashes = []hash{{"SHA-256", hex.EncodeToString(raw)}}
	return c, nil
}

// packageURL names a module as https://github.com/package-url/purl-spec does.
func packageURL(name, version string) string {
	return "pkg:golang/" + name + "@" + strings.ReplaceAll(version, "+", "%2B")
}
