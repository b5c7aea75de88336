// A certified OpenID provider for the tests: node oidc_provider.mjs PORT REDIRECT-URI. Whoever types a name is signed in.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [port, back, modules] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(createRequire(modules + "/").resolve("oidc-provider")).href);

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: "licet", client_secret: "s:e cret", redirect_uris: [back] }],
  claims: { openid: ["sub"], email: ["email", "email_verified"] },
  findAccount: (_ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: id !== "unverified" }),
  }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
