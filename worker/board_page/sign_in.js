// Says that the last token was wrong.
if (location.search === "?wrong") {
  document.getElementById("wrong").hidden = false;
  history.replaceState(null, "", "/sign-in");
}
