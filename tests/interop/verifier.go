// Verifies a Licet ledger with Go's sumdb packages: the note's signature, then an inclusion proof for every
// entry, computed from the tiles. Usage: verifier DIRECTORY
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func read(root, name string) []byte {
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		fail("%v", err)
	}
	return data
}

// path is the C2SP name of a tile, which differs from Go's own only in the leading height.
func path(tile tlog.Tile) string {
	parts := strings.SplitN(tile.Path(), "/", 4) // tile/H/L/...
	return "tile/" + parts[2] + "/" + parts[3]
}

type reader struct{ root string }

func (r reader) Height() int { return tileHeight }

func (r reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(r.root, path(tile)))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (r reader) SaveTiles([]tlog.Tile, [][]byte) {}

func main() {
	root := os.Args[1]
	verifier, err := note.NewVerifier(strings.TrimSpace(string(read(root, "vkey"))))
	if err != nil {
		fail("vkey: %v", err)
	}
	opened, err := note.Open(read(root, "checkpoint"), note.VerifierList(verifier))
	if err != nil {
		fail("checkpoint: %v", err)
	}
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		fail("origin %q, key of %q", lines[0], verifier.Name())
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		fail("size: %v", err)
	}
	hash, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(hash) != tlog.HashSize {
		fail("root: %v", err)
	}
	var rootHash tlog.Hash
	copy(rootHash[:], hash)
	tree := tlog.Tree{N: size, Hash: rootHash}
	hashes := tlog.TileHashReader(tree, reader{root})
	index := int64(0)
	for index < size {
		tile := tlog.TileForIndex(tileHeight, tlog.StoredHashIndex(0, index))
		width := min(size-tile.N<<tileHeight, 1<<tileHeight)
		tile.W = int(width)
		name := strings.Replace(path(tile), "tile/0/", "tile/entries/", 1)
		bundle := bytes.NewReader(read(root, name))
		for range width {
			var length uint16
			if err := binary.Read(bundle, binary.BigEndian, &length); err != nil {
				fail("%s: %v", name, err)
			}
			entry := make([]byte, length)
			if _, err := bundle.Read(entry); err != nil {
				fail("%s: %v", name, err)
			}
			proof, err := tlog.ProveRecord(size, index, hashes)
			if err != nil {
				fail("entry %d: %v", index, err)
			}
			if err := tlog.CheckRecord(proof, size, rootHash, index, tlog.RecordHash(entry)); err != nil {
				fail("entry %d: %v", index, err)
			}
			index++
		}
	}
	fmt.Printf("%d entries proved\n", index)
}
